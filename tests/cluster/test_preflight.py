"""The checks before a run, on one process with eight devices."""

import json
import shutil

import jax
import pytest

from pdl_jax.cluster import preflight
from pdl_jax.cluster.preflight import Preflight
from pdl_jax.errors import HostError
from pdl_jax.run import prepare
from tests import small

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.fixture(scope='module')
def ready(tmp_path_factory):
  folder = tmp_path_factory.mktemp('texts')
  for split in ('train', 'validation', 'test'):
    texts = [{'source': f'{split} {n} x', 'target': f'{n}'} for n in range(40)]
    lines = '\n'.join(map(json.dumps, texts))
    (folder / f'{split}.jsonl').write_text(lines, 'utf-8')
  changes = {'data.name': f'jsonl:{folder}', 'data.max_prompt': 110}
  return prepare.prepare(small.settings(folder, **changes), None)


def flight(tmp_path, **changes):
  return Preflight(small.settings(tmp_path, **changes), tmp_path / 'run')


def test_all_is_well(tmp_path, ready, capsys):
  checks = flight(tmp_path)
  checks.start()
  checks.data(ready)
  lines = capsys.readouterr().out.strip().splitlines()
  assert [line[:4] for line in lines] == ['PASS'] * len(lines)
  assert lines[2].startswith('PASS  configuration            ')  # aligned
  assert [line[6:].split('  ')[0] for line in lines] == [
    'backend', 'processes, devices', 'configuration', 'code', 'packages',
    'mesh, batch', 'all-reduce', 'shared run folder', 'save and restore',
    'data', 'tokenizer', 'frequency table', 'weights before training',
    'memory of a device', 'free space',
  ]  # fmt: skip
  # What was tried is gone.
  assert {p.name for p in (tmp_path / 'run' / 'hosts').iterdir()} == {'token'}


def test_what_fails_is_a_row_and_the_others_are_told(
  tmp_path, monkeypatch, capsys
):
  """A mesh that does not fit; a wrong sum, on the CPU for want of better."""
  with pytest.raises(HostError, match='mesh, batch: mesh data 3 x fsdp 1 x'):
    flight(tmp_path, **{'mesh.data': 3}).start()
  printed = capsys.readouterr().out
  assert 'FAIL  mesh, batch' in printed and 'PASS  code' in printed
  doubled = lambda x, placed: jax.device_put(x * 2, placed)
  monkeypatch.setattr(preflight, 'put', doubled)
  asked = jax.config.values['jax_platforms']
  jax.config.update('jax_platforms', None)
  try:
    words = 'backend: no accelerator was found.*over 8 devices is 72, not 36'
    with pytest.raises(HostError, match=words):
      flight(tmp_path).start()
  finally:
    jax.config.update('jax_platforms', asked)


def test_too_little_of_everything(tmp_path, ready, monkeypatch, capsys):
  """Rows of their own, and a run that does not begin."""
  monkeypatch.setattr(preflight, '_device_bytes', lambda: 1000)
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  checks = Preflight(small.settings(tmp_path), tmp_path)
  with pytest.raises(HostError, match='a device needs .* of 0.00 GB.* for '
                     'checkpoints, 0.00 GB free'):  # fmt: skip
    checks.data(ready)
  printed = capsys.readouterr().out
  assert 'FAIL  memory of a device' in printed and 'FAIL  free space' in printed


def test_a_folder_that_only_one_host_has(tmp_path, monkeypatch):
  """The second host sees no token under the same path."""
  checks = flight(tmp_path)
  checks._hosts = ['a', 'b']
  others = iter(['', '', f'{tmp_path}/run'])
  monkeypatch.setattr(preflight, 'gather', lambda own: [own, next(others)])
  checks._shared_folder()
  (row,) = checks._rows
  assert row.failure.startswith(
    'process 1 (on b) does not see what process 0 (on a) writes in '
    f'{tmp_path}/run: the run folder must be one that all hosts mount'
  )


def test_differences_are_named_by_host_and_counted():
  facts = [{'a': 1, 'b': 2, 'c': 3}, {'a': 1, 'b': 2, 'c': 3},
           {'a': 0, 'b': 'x' * 199, 'd': 4}]  # fmt: skip
  found = preflight.differences(facts, ['h0', 'h1', 'h2'])
  assert found == (
    'a is 0 in process 2 (on h2) and 1 in process 0 (on h0); b is '
    f'{"x" * 120} in process 2 (on h2) and 2 in process 0 (on h0); c is absent '
    'in process 2 (on h2) and 3 in process 0 (on h0); and 1 more'
  )
  assert preflight.differences(facts[:2], ['h0', 'h1']) == ''
