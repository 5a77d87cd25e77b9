"""How long do collecting, reporting and status take for a thousand runs?

  python -m benchmarks.report_speed
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import harness
from benchmarks.harness import ROOT, Record
from experiments import metrics
from pdl_jax.report import carry_out, compare, figures, plan, tables
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import ByCount, Curves, Line
from pdl_jax.sweep.status import format_status, status

RUNS = ROOT / 'runs' / 'report_speed'
ALPHAS, SEEDS, ROUNDS = 100, 10, 3
CONFIG = 'configs/summarize.py:tiny'


def declared(alphas: int, seeds: int) -> Experiment:
  """Declares `alphas` rows with `seeds` seeds each."""
  variants = (
    Variant(f'alpha {i / 100:g}', {'loss.alpha': i / 100})
    for i in range(alphas)
  )
  study = Study(
    'summarize', 'A thousand runs', CONFIG, tuple(variants),
    baseline='alpha 0', metrics=metrics.QUALITY + metrics.DIVERSITY,
    seeds=tuple(range(seeds)),
  )  # fmt: skip
  drawn = (Line('loss.alpha', ('perplexity', 'rougeL')), ByCount(), Curves())
  return Experiment('How fast?', (study,), drawn)


def measure(options: harness.Options) -> list[Record]:
  """Measures one record; a tiny benchmark has four runs."""
  experiment = declared(*((2, 2) if options.tiny else (ALPHAS, SEEDS)))
  os.chdir(ROOT)
  original = _original()
  os.chdir(RUNS)
  (RUNS / 'configs').unlink(missing_ok=True)
  (RUNS / 'configs').symlink_to(ROOT / 'configs')
  count = _copies(experiment, original)
  rounds = [_round(experiment) for _ in range(options.rounds(ROUNDS))]
  sums = json.loads((original / 'items.json').read_text('utf-8'))
  return [{
    'runs': count, 'examples': len(sums['after']['sums']['nats']),
    'cpus': os.cpu_count(), 'rounds': rounds,
  }]  # fmt: skip


def _original() -> Path:
  workdir = RUNS / 'original'
  subprocess.run(
    [
      sys.executable, 'launch.py', f'--config={CONFIG}',
      '--config.evaluate.examples=256', f'--workdir={workdir}',
    ],
    check=True,
  )  # fmt: skip
  return workdir


def _copies(experiment: Experiment, original: Path) -> int:
  [study] = experiment.studies
  shutil.rmtree(plan.root(study.config), ignore_errors=True)
  texts = {
    name: json.loads((original / name).read_text('utf-8'))
    for name in ('results.json', 'items.json')
  }
  count = 0
  for seed in study.seeds:
    for _, run in plan.runs(study, seed):
      run.folder.mkdir(parents=True)
      for name in ('env.json', 'metrics.jsonl', 'frequency.npz', 'status.json'):
        shutil.copy(original / name, run.folder / name)
      config = {'hash': run.cell.digest, **run.cell.config}
      (run.folder / 'config.json').write_text(json.dumps(config), 'utf-8')
      for name, value in _shifted(texts, count).items():
        (run.folder / name).write_text(json.dumps(value), 'utf-8')
      count += 1
  return count


def _shifted(texts: dict[str, Any], number: int) -> dict[str, Any]:
  """Scales the nats of a run's target tokens at random, in all its files."""
  random, found = np.random.default_rng(number), json.loads(json.dumps(texts))
  sums = found['items.json']['after']['sums']
  noise = random.normal(1, 0.05, len(sums['nats']))
  sums['nats'] = np.multiply(sums['nats'], noise).round(5).tolist()
  *_, after = found['results.json']['columns'].values()
  nats = sum(sums['nats']) / sum(sums['tokens'])
  after['perplexity']['value'] = float(np.exp(nats))
  return found


def _round(experiment: Experiment) -> dict[str, float]:
  out = RUNS / 'out'
  shutil.rmtree(out, ignore_errors=True)
  out.mkdir()

  def report() -> None:
    with threadpool_limits(1):
      made = compare.make_report(
        'report_speed', '', experiment, carry_out.read(out),
        carry_out.read_definitions(out),
      )  # fmt: skip
      for write in (tables.markdown, tables.latex, tables.csv, figures.draw):
        write(made)

  parts: dict[str, Callable[[], Any]] = {
    'collect': lambda: carry_out.keep(experiment, out),
    'report': report,
    'status': lambda: format_status(status(plan.root(CONFIG))),
  }
  seconds = {}
  for name, call in parts.items():
    began = time.perf_counter()
    call()
    seconds[name] = time.perf_counter() - began
  return seconds


def table(records: list[Record]) -> str:
  """Formats the one record."""
  (record,) = records
  names = {
    'collect': 'reading the run folders into records',
    'report': 'tables and figures from the records',
    'status': 'status',
  }
  times = {key: [each[key] for each in record['rounds']] for key in names}
  return (
    f'{record["runs"]:,} runs of {record["examples"]} examples, {ALPHAS} rows '
    f'with {SEEDS} seeds; {record["cpus"]} CPUs; seconds of '
    f'{len(record["rounds"])} rounds.\n\n'
    + harness.listed(names, {
      'part': lambda key: names[key],
      'median': lambda key: f'{np.median(times[key]):.2f}',
      'least': lambda key: f'{min(times[key]):.2f}',
      'most': lambda key: f'{max(times[key]):.2f}',
    })
  )


if __name__ == '__main__':
  harness.main(__file__, measure, table)
