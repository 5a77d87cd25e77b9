"""Which sets of predictions evaluate shows; the rest: test_job_tasks.py."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pdl_jax.evaluate.run import evaluate
from pdl_jax.generate import DecodeSettings
from pdl_jax.run import rescore
from pdl_jax.train import loop
from tests.prediction_records import STOP, make_record

STORED = ('before', 'after', 'after-beam', 'after-greedy', 'before-greedy')


@pytest.mark.parametrize(
  ('made', 'names'),
  [
    ([], list(STORED)),
    (['after-beam'], ['before', 'after', 'after-beam']),
    (
      ['before-greedy', 'after-greedy'],
      ['before', 'after', 'after-greedy', 'before-greedy'],
    ),
  ],
)
def test_tables_hold_what_was_made_now_beside_the_run(made, names):
  results = {name: {'examples': i} for i, name in enumerate(STORED)}
  shown = rescore.shown(results, made)
  assert list(shown) == names
  assert shown.items() <= results.items()


@pytest.mark.parametrize(
  ('decode', 'tables'),
  [
    (None, [STORED[:3], STORED[3:]]),
    (DecodeSettings(), [('before', 'after', 'after-greedy')]),
  ],
)
def test_terminal_shows_some_and_the_file_has_all(
  decode, tables, monkeypatch, capsys
):
  result = evaluate([make_record()], np.full(12, 5), [STOP]).results
  results, written = dict.fromkeys(STORED, result), {}
  folder = SimpleNamespace(write=written.__setitem__)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  for module, name, value in (
    (rescore.restore, 'open_run', (None, folder)),
    (rescore.finetune, 'mesh_for', mesh),
    (rescore.prepare, 'prepare', SimpleNamespace(model=None)),
    (rescore.prepare, 'check_context', None),
    (rescore, '_generate', None),
    (rescore, '_measure', results),
  ):
    monkeypatch.setattr(module, name, lambda *_, value=value: value)
  given = decode and dataclasses.asdict(decode)
  stop = loop.StopRequest()
  rescore.run(Path('runs/one'), given, ('after',), stop)
  assert written == {'evaluations.json': results}
  printed = capsys.readouterr().out
  headers = [
    [cell.strip() for cell in line.split('|')[3:-2]]
    for line in printed.splitlines()
    if 'Better' in line
  ]
  assert headers == [[f'{name} (n=1)' for name in names] for names in tables]
  assert max(map(len, printed.splitlines())) <= 120
  assert 'all 5 stored sets, every value with its definition: runs' in printed
