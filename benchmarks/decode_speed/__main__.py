"""Is greedy decoding faster here than with transformers on PyTorch?

  python -m benchmarks.decode_speed            # what is missing
  python -m benchmarks.decode_speed --report   # from the records
  python -m benchmarks.decode_speed --smoke    # tiny sizes

The same prompts, weights and lengths in one process, in turn. Each case runs
in a process of its own, which needs the packages of requirements.txt in this
folder, and leaves one line in records.jsonl. A report needs none of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdl_jax import process
from pdl_jax.storage import files

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
BASELINE = 'transformers'
LABELS = {
  'ours_1': 'ours, 1 prompt bucket',
  'ours_4': 'ours, 4 prompt buckets',
  BASELINE: 'transformers on PyTorch',
}

Case = dict[str, Any]
Record = dict[str, Any]

# At batch 32 one bucket and four pad these prompts to the same lengths (table
# 3): the same program, timed once. PASSIVE: idle workers of torch sleep, else
# they spin for a while, into what is timed next; the second case shows what
# torch loses by sleeping.
CASES: tuple[Case, ...] = (
  {
    'prompts': 64, 'batch': 32, 'new_tokens': 40, 'rounds': 5,
    'contenders': ['ours_4', BASELINE], 'wait_policy': 'PASSIVE',
  },
  {
    'prompts': 32, 'batch': 32, 'new_tokens': 40, 'rounds': 5,
    'contenders': ['ours_4', BASELINE], 'wait_policy': None,
  },
)  # fmt: skip
SMOKE: tuple[Case, ...] = (
  {
    'prompts': 4, 'batch': 2, 'new_tokens': 4, 'rounds': 2,
    'contenders': list(LABELS), 'wait_policy': 'PASSIVE',
  },
)  # fmt: skip


def main() -> None:
  """Runs the cases that are missing, then writes and prints the tables."""
  parser = argparse.ArgumentParser(description='Greedy decoding against torch')
  parser.add_argument('--report', action='store_true', help='run nothing')
  parser.add_argument(
    '--smoke', action='store_true', help='tiny sizes, into runs/decode_speed'
  )
  args = parser.parse_args()
  folder = ROOT / 'runs' / 'decode_speed' if args.smoke else FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'records.jsonl'
  if not args.report:
    run(path, SMOKE if args.smoke else CASES)
  text = table(read(path))
  (folder / 'table.md').write_text(text, 'utf-8')
  print(text)


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': table(read(FOLDER / 'records.jsonl'))}


def read(path: Path) -> list[Record]:
  """The finished cases; none, where nothing was run."""
  if not path.exists():
    return []
  return files.read_lines(path)


def run(path: Path, cases: Sequence[Case]) -> None:
  """Appends the record of each case that has none."""
  known = [record['case'] for record in read(path)]
  for case in cases:
    if case in known:
      continue
    done = subprocess.run(
      [
        sys.executable, '-m', 'benchmarks.decode_speed.measure',
        json.dumps(case),
      ],
      cwd=ROOT, env=_environment(case), check=True, stdout=subprocess.PIPE,
      encoding='utf-8',
    )  # fmt: skip
    with path.open('a', encoding='utf-8') as file:
      file.write(done.stdout.splitlines()[-1] + '\n')


def _environment(case: Case) -> dict[str, str]:
  others = {k: v for k, v in os.environ.items() if k != 'OMP_WAIT_POLICY'}
  policy = case['wait_policy']
  # A program from a cache would not show what compiling it takes.
  return others | {'JAX_ENABLE_COMPILATION_CACHE': 'false'} | (
    {'OMP_WAIT_POLICY': policy} if policy else {}
  )


# --- tables -------------------------------------------------------------------


def table(records: list[Record]) -> str:
  """All tables, as Markdown."""
  return '\n'.join((_times(records), _texts(records), _setting(records)))


def seconds(record: Record, name: str) -> list[float]:
  """Of a contender, each round: reading the prompts and generating."""
  found = record['contenders'][name]
  parts = (found['prefill_seconds'], found['decode_seconds'])
  return [a + b for a, b in zip(*parts, strict=True)]


def ratios(record: Record, name: str, part: str) -> list[float]:
  """Time over that of transformers in the same round.

  Args:
    record: of a case.
    name: of a contender.
    part: prefill, decode, or whole for both.
  """

  def of(name: str) -> list[float]:
    if part == 'whole':
      return seconds(record, name)
    return record['contenders'][name][f'{part}_seconds']

  return [a / b for a, b in zip(of(name), of(BASELINE), strict=True)]


def _times(records: list[Record]) -> str:
  header = [
    'decoding', 'prompts', 'OMP_WAIT_POLICY', 'time, s',
    'over transformers: whole', 'prefill', 'decode', 'prefill tokens/s',
    'decode tokens/s', 'share of prefill', 'first call, s',
  ]  # fmt: skip
  rows = [
    [LABELS[name], *_cells(record, name)]
    for record in records
    for name in record['case']['contenders']
  ]
  note = (
    'Medians over the rounds, quartiles in brackets; ratios are of the same '
    'round, below 1 is faster than transformers. The first call compiles.'
  )
  return _section('1. Time', note, header, rows)


def _cells(record: Record, name: str) -> list[str]:
  case, whole = record['case'], seconds(record, name)
  found = record['contenders'][name]
  prefill, decode = found['prefill_seconds'], found['decode_seconds']
  shares = [a / b for a, b in zip(prefill, whole, strict=True)]
  # The prefill has given the first token of each text.
  made = case['prompts'] * (case['new_tokens'] - 1)
  return [
    str(case['prompts']),
    case['wait_policy'] or 'unset',
    _quartiles(whole, 1),
    *(
      _quartiles(ratios(record, name, part), 2)
      for part in ('whole', 'prefill', 'decode')
    ),
    f'{record["prompt_tokens"] / statistics.median(prefill):,.0f}',
    f'{made / statistics.median(decode):,.0f}',
    f'{statistics.median(shares):.0%}',
    f'{found["first_seconds"]:.1f}',
  ]


def _texts(records: list[Record]) -> str:
  header = [
    'decoding', 'prompts', 'equal ids', 'equal texts',
    'largest gap at a first difference, nats',
  ]  # fmt: skip
  rows = [
    [
      LABELS[name],
      str(record['case']['prompts']),
      f'{found["equal_ids"]:.2%}',
      f'{found["equal_texts"]} of {found["texts"]}',
      f'{max(found["gaps"]):.1e}' if found['gaps'] else 'no difference',
    ]
    for record in records
    for name, found in record['agreement'].items()
  ]
  note = 'Against what transformers generates.'
  return _section('2. Texts', note, header, rows)


def _setting(records: list[Record]) -> str:
  facts = [_facts(record) for record in records]
  rows = [
    [name, *(fact[name] for fact in facts)] for name in (facts or [{}])[0]
  ]
  header = ['what', *(f'case {i}' for i in range(1, len(facts) + 1))]
  note = 'Load: runnable processes, averages of 1, 5 and 15 minutes.'
  return _section('3. Circumstances', note, header, rows)


def _facts(record: Record) -> dict[str, str]:
  case, found = record['case'], record['environment']
  loads = lambda key: ', '.join(f'{x:.1f}' for x in found[key])  # noqa: E731
  return {
    'prompts, batch': f'{case["prompts"]}, {case["batch"]}',
    'OMP_WAIT_POLICY': found['wait_policy'] or 'unset',
    'prompt tokens, padding not counted': f'{record["prompt_tokens"]:,}',
    'longest prompt of each batch': _listed(record['longest_prompts']),
    **{
      f'columns of each batch, prompt buckets {count}': _listed(sizes)
      for count, sizes in record['bucketed_prompts'].items()
    },
    'new tokens a prompt': str(case['new_tokens']),
    'rounds': str(case['rounds']),
    'processors': f'{found["cpus"]} ({found["machine"]})',
    'load before': loads('load_start'),
    'load after': loads('load_end'),
    'date': found['date'],
    **found['versions'],
  }


def _listed(numbers: Sequence[int]) -> str:
  return ', '.join(map(str, numbers))


def _section(
  heading: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  lines = [
    f'## {heading}', '', note, '', '| ' + ' | '.join(header) + ' |',
    '| --- |' + ' ---: |' * (len(header) - 1),
    *('| ' + ' | '.join(row) + ' |' for row in rows), '',
  ]  # fmt: skip
  return '\n'.join(lines)


def _quartiles(values: Sequence[float], digits: int) -> str:
  low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
  return f'{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'


if __name__ == '__main__':
  process.set_xla_flags()
  main()
