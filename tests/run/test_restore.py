"""What does not train comes from the model's files, not from checkpoints."""

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pdl_jax.errors import CheckpointError, ConfigError, PreemptedError
from pdl_jax.generate import DecodeSettings
from pdl_jax.model.positions import KINDS
from pdl_jax.run import export, finetune, rescore, restore
from pdl_jax.run.load_model import load_model, restored_model
from pdl_jax.run.open_model import Model
from pdl_jax.run.prepare import load_source
from pdl_jax.run_folder import RunFolder
from pdl_jax.train import loop
from pdl_jax.train.checksum import json_crc, leaves_by_path
from tests.run.conftest import (
  predictions_of,
  read,
  rows,
  run_task,
  settings_of,
)

pytestmark = pytest.mark.usefixtures('quick_compile')

LORA = {
  'train.steps': 6, 'optimizer.trainable': 'lora', 'model.lora.rank': 2,
  'optimizer.learning_rate': 1e-2, 'model.lora.targets': 'value,up',
}  # fmt: skip


@pytest.fixture(scope='module')
def base(quick_compile, finished, tmp_path_factory):
  """A folder of Hugging Face."""
  folder = tmp_path_factory.mktemp('base') / 'base'
  export.run(finished, folder)
  return folder


@pytest.fixture(scope='module')
def adapted(quick_compile, base, texts, tmp_path_factory):
  """A finished run of adapters, never disturbed."""
  workdir = tmp_path_factory.mktemp('adapted') / 'run'
  return run_task(texts, workdir, **lora(base))


def lora(base):
  return {**LORA, 'model.pretrained': str(base)}


def run(texts, workdir, changes):
  finetune.run(settings_of(texts, **changes), workdir, loop.StopRequest())


def stopped(texts, workdir, changes, monkeypatch):
  """A run that heard SIGTERM in step 5."""
  append = RunFolder.append_metrics

  def append_and_stop(self, row):
    append(self, row)
    if row['step'] == 4 and 'loss' in row:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(RunFolder, 'append_metrics', append_and_stop)
    with pytest.raises(PreemptedError):
      run(texts, workdir, changes)


def newest(workdir):
  return max((workdir / 'checkpoints').iterdir(), key=lambda x: int(x.name))


def size(step):
  """Bytes of the arrays."""
  return sum(x.stat().st_size for x in (step / 'state').rglob('d/*'))


def record(step):
  """What a checkpoint says of its leaves."""
  return read(step / 'meta' / 'metadata')


def losses(workdir):
  return [
    {k: v for k, v in row.items() if k != 'tokens_per_second'}
    for row in rows(workdir / 'metrics.jsonl')
  ]


def same_end(one, other):
  assert losses(one) == losses(other)
  for name in ('before', 'after'):
    assert predictions_of(one, name) == predictions_of(other, name)
  assert record(newest(one))['checksums'] == record(newest(other))['checksums']


def bytes_of(types):
  """Of arrays that are described as in float32[2, 3]."""
  found = (text.rstrip(']').split('[') for text in types)
  return sum(
    np.dtype(dtype).itemsize * int(np.prod(json.loads(f'[{shape}]'), dtype=int))
    for dtype, shape in found
  )


def test_a_checkpoint_of_adapters_has_what_trains_alone(adapted, base):
  step = newest(adapted)
  known = record(step)
  frozen = {path for path in known['arrays'] if path.startswith('frozen/')}
  assert {*known['elsewhere']} == frozen
  kept = json.loads((step / 'state' / '_METADATA').read_text('utf-8'))
  names = {key.split("'")[1] for key in kept['tree_metadata']}
  assert names == {'step', 'trained', 'opt_state', 'skipped', 'skipped_in_row',
                   'frozen'}  # fmt: skip
  needed = bytes_of(
    types for path, types in known['arrays'].items() if path not in frozen
  )
  # Random numbers do not compress, and Orbax adds its own.
  others = bytes_of(known['arrays'][path] for path in frozen)
  assert 0.8 * needed < size(step) < others / 4


@pytest.mark.slow
def test_a_stopped_run_of_adapters_continues_bit_for_bit(
  adapted, base, texts, tmp_path, monkeypatch
):
  stopped(texts, tmp_path / 'run', lora(base), monkeypatch)
  run(texts, tmp_path / 'run', lora(base))
  same_end(tmp_path / 'run', adapted)


@pytest.mark.slow
def test_a_whole_checkpoint_of_an_earlier_version_is_continued(
  adapted, base, texts, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patch:
    patch.setattr(Model, 'in_files', lambda *_: [])
    stopped(texts, workdir, lora(base), patch)
  assert size(newest(workdir)) > 2 * size(newest(adapted))
  for step in (workdir / 'checkpoints').iterdir():
    known = record(step)
    del known['crc32'], known['elsewhere']
    text = json.dumps({**known, 'crc32': json_crc(known)})
    (step / 'meta' / 'metadata').write_text(text, 'utf-8')
  run(texts, workdir, lora(base))
  same_end(workdir, adapted)
  left_out = [record(newest(x))['elsewhere'] for x in (workdir, adapted)]
  assert left_out[0] == left_out[1] != []


def alter(base):
  """Flips the last bit of a number; the logits do not show it."""
  file = base / 'model.safetensors'
  raw = bytearray(file.read_bytes())
  raw[-4] ^= 1
  file.write_bytes(raw)


def test_a_base_with_another_bit_is_refused_in_a_line(
  adapted, base, texts, tmp_path, monkeypatch
):
  own, workdir = tmp_path / 'base', tmp_path / 'run'
  shutil.copytree(base, own)
  stopped(texts, workdir, lora(own), monkeypatch)
  alter(own)
  before = sorted((workdir / 'checkpoints').iterdir())
  with pytest.raises(CheckpointError) as error:
    run(texts, workdir, lora(own))
  said = str(error.value)
  assert error.value.exit_code == 6 and '\n' not in said
  assert f'checkpoint {before[-1]} does not have the weights' in said
  assert 'and 1 of ' in said and 'put back the model' in said
  assert sorted((workdir / 'checkpoints').iterdir()) == before
  alter(own)
  run(texts, workdir, lora(own))
  alter(own)
  with pytest.raises(CheckpointError, match='have changed since'):
    export.run(workdir, tmp_path / 'to')
  with pytest.raises(CheckpointError, match='have changed since'):
    rescore.run(workdir, decoding(), ('after',), loop.StopRequest())


def decoding():
  return dataclasses.asdict(DecodeSettings(max_new_tokens=2))


def test_a_base_that_is_gone_is_said_in_a_line(
  finished, texts, tmp_path, monkeypatch
):
  first, workdir = tmp_path / 'first', tmp_path / 'run'
  shutil.copytree(finished, first)
  changes = lora(f'run:{first}')
  stopped(texts, workdir, changes, monkeypatch)
  assert record(newest(workdir))['elsewhere']
  first.rename(tmp_path / 'away')
  words = f'model.pretrained: there is no run in {first}$'
  with pytest.raises(ConfigError, match=words):
    run(texts, workdir, changes)
  (tmp_path / 'away').rename(first)
  run(texts, workdir, changes)
  (first / 'checkpoints').rename(tmp_path / 'away')
  with pytest.raises(CheckpointError, match='first has no checkpoint'):
    export.run(workdir, tmp_path / 'to')
  shutil.rmtree(first)
  with pytest.raises(ConfigError, match=words):
    export.run(workdir, tmp_path / 'to')
  with pytest.raises(ConfigError, match=words):
    rescore.run(workdir, decoding(), ('after',), loop.StopRequest())


def test_another_mesh_gets_the_same_numbers(adapted, texts):
  before, folder = restore.open_run('x', adapted)
  source = load_source(before, 'train')
  one, other = (
    restored_model(before, folder, settings_of(texts, **mesh), source).params
    for mesh in (
      {}, {'mesh.data': 2, 'mesh.fsdp': 4},
    )
  )  # fmt: skip
  assert one['embed_VxD'].sharding != other['embed_VxD'].sharding
  jax.tree.map(np.testing.assert_array_equal, one, other)


def elsewhere(texts, **changes):
  settings = settings_of(texts, **changes)
  model = load_model(settings, None, load_source(settings, 'train'))
  start = restore.start_state(
    settings, model.config, model.params, settings.mesh.make()
  )
  frozen = {*leaves_by_path({'frozen': start.frozen})}
  assert frozen
  return {*model.in_files(start)}, frozen


def test_what_is_drawn_fitted_or_multiplied_is_saved(
  adapted, base, texts, tmp_path
):
  """On another machine it may have other last bits."""
  last = {'optimizer.trainable': 'last_layers', 'optimizer.last_layers': 1}
  assert elsewhere(texts, **last)[0] == set()
  export.run(adapted, tmp_path / 'adapter', adapter_alone=True)
  last['model.pretrained'] = str(base)
  found, frozen = elsewhere(texts, **last)
  assert found == frozen
  merged = {'model.adapter': str(tmp_path / 'adapter')}
  assert elsewhere(texts, **last, **merged)[0] == set()
  of_run = last | {'model.pretrained': f'run:{adapted}'}
  assert elsewhere(texts, **of_run)[0] == set()
  found, frozen = elsewhere(texts, **last, **{'model.attention': 'complex'})
  drawn = {path.split('/')[-1] for path in frozen - found}
  assert drawn == {*KINDS['complex'].learns}
  found, frozen = elsewhere(texts, **lora(base), **{'model.head': 'dense'})
  assert frozen - found == {'frozen/head/matrix_VxD'}
  model = Model('', None, {}, None, from_files=True)
  state = SimpleNamespace(frozen={'head': {'matrix_VxD': 0, 'codes_MxV': 0}})
  assert model.in_files(state) == ['frozen/head/matrix_VxD']
