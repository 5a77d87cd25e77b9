"""How long do collecting, reporting and status take for a thousand runs?

  python -m benchmarks.report_speed

One finished run of the smallest job is copied a thousand times, 100 values of
alpha with 10 seeds, its numbers shifted by noise; then everything a report
does is timed: reading the run folders, the tables and figures with all their
bootstraps, and status.
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
from experiments import metrics
from pdl_jax.report import carry_out, compare, figures, plan, tables
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import ByCount, Curves, Line
from pdl_jax.sweep.status import format_status, status

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
RUNS = ROOT / 'runs' / 'report_speed'
ALPHAS, SEEDS, ROUNDS = 100, 10, 3
DECLARED = Experiment(
  'How fast?',
  (
    Study(
      'summarize', 'A thousand runs', 'configs/summarize.py:tiny',
      tuple(
        Variant(f'alpha {i / 100:g}', {'loss.alpha': i / 100})
        for i in range(ALPHAS)
      ),
      baseline='alpha 0', metrics=metrics.QUALITY + metrics.DIVERSITY,
      seeds=tuple(range(SEEDS)),
    ),
  ),
  (Line('loss.alpha', ('perplexity', 'rougeL')), ByCount(), Curves()),
)


def main() -> None:
  """Measures, and leaves records.jsonl, env.json and table.md."""
  os.chdir(ROOT)
  original = _original()
  os.chdir(RUNS)
  (RUNS / 'configs').unlink(missing_ok=True)
  (RUNS / 'configs').symlink_to(ROOT / 'configs')
  count = _copies(original)
  rounds = [_round() for _ in range(ROUNDS)]
  record = {
    'runs': count,
    'examples': len(
      json.loads((original / 'items.json').read_text('utf-8'))['after'][
        'sums']['nats']),
    'cpus': os.cpu_count(),
    'rounds': rounds,
  }  # fmt: skip
  harness.keep(FOLDER, [record], report_files)


def _original() -> Path:
  """A finished run of the smallest job, as users make it."""
  workdir = RUNS / 'original'
  subprocess.run(
    [
      sys.executable, 'launch.py', '--config=configs/summarize.py:tiny',
      '--config.evaluate.examples=256', f'--workdir={workdir}',
    ],
    check=True,
  )  # fmt: skip
  return workdir


def _copies(original: Path) -> int:
  """A folder for every declared run, with numbers of its own."""
  [study] = DECLARED.studies
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
  """Results and items of a run whose every target token costs more or less."""
  random, found = np.random.default_rng(number), json.loads(json.dumps(texts))
  sums = found['items.json']['after']['sums']
  noise = random.normal(1, 0.05, len(sums['nats']))
  sums['nats'] = np.multiply(sums['nats'], noise).round(5).tolist()
  *_, after = found['results.json']['columns'].values()
  nats = sum(sums['nats']) / sum(sums['tokens'])
  after['perplexity']['value'] = float(np.exp(nats))
  return found


def _round() -> dict[str, float]:
  """Seconds of each part."""
  out = RUNS / 'out'
  shutil.rmtree(out, ignore_errors=True)
  out.mkdir()
  seconds = {}

  def timed(name: str, call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    value = call()
    seconds[name] = time.perf_counter() - began
    return value

  def report() -> None:
    with threadpool_limits(1):
      made = compare.make_report(
        'report_speed', '', DECLARED, carry_out.read(out),
        carry_out.read_definitions(out),
      )  # fmt: skip
      for write in (tables.markdown, tables.latex, tables.csv, figures.draw):
        write(made)

  timed('collect', lambda: carry_out.keep(DECLARED, out))
  timed('report', report)
  root = plan.root(DECLARED.studies[0].config)
  timed('status', lambda: format_status(status(root)))
  return seconds


def table(record: dict[str, Any]) -> str:
  """The record as Markdown."""
  names = {
    'collect': 'reading the run folders into records',
    'report': 'tables and figures from the records',
    'status': 'status',
  }
  lines = [
    f'{record["runs"]:,} runs of {record["examples"]} examples, {ALPHAS} rows '
    f'with {SEEDS} seeds; {record["cpus"]} CPUs; seconds of '
    f'{len(record["rounds"])} rounds.', '',
    '| part | median | least | most |', '| --- | ---: | ---: | ---: |',
  ]  # fmt: skip
  for key, name in names.items():
    times = [each[key] for each in record['rounds']]
    lines.append(
      f'| {name} | {np.median(times):.2f} | {min(times):.2f} | '
      f'{max(times):.2f} |'
    )
  return '\n'.join(lines) + '\n'


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  (record,) = harness.read(FOLDER)
  return {'table.md': table(record)}


if __name__ == '__main__':
  main()
