"""Carries the records of all experiments over to a new hash of configurations.

  python -m experiments.rehash list > runs.json    # with the code before
  python -m experiments.rehash apply runs.json     # with the code after it

Records are matched to declared runs by the hash of their configuration, and
what does not match is dropped when an experiment is swept. So a change of keys
or of the hash comes with this, in one commit. A record that was not declared
before, or whose run is not declared any more, stops it before it writes.
"""

import json
import sys
from pathlib import Path

from pdl_jax.errors import DataError
from pdl_jax.report import carry_out, index, plan
from pdl_jax.report.declare import Experiment

# Study -> 'row, seed' -> hash.
Runs = dict[str, dict[str, str]]


def declared(experiment: Experiment) -> Runs:
  """The hash of every run that an experiment declares."""
  return {
    study.name: {
      f'{variant.label}, {seed}': run.cell.digest
      for seed in study.seeds
      for variant, run in plan.runs(study, seed)
    }
    for study in experiment.studies
  }


def rehashed(folder: Path, before: Runs, after: Runs) -> list[str]:
  """The lines of records.jsonl, each with its new hash.

  Raises:
    DataError: a record of a run that is not declared.
  """
  lines = []
  for number, record in enumerate(carry_out.read(folder), start=1):
    study = record['study']
    # Rows may share a run.
    rows = [k for k, v in before.get(study, {}).items() if v == record['hash']]
    new = {after.get(study, {}).get(row) for row in rows}
    if len(new) != 1 or None in new:
      raise DataError(
        f'{folder / carry_out.RECORDS}:{number}: {study}, {record["row"]}, '
        f'seed {record["seed"]}: {len(rows)} declared runs had the hash '
        f'{record["hash"]}, which have {len(new)} now'
      )
    lines.append(json.dumps(record | {'hash': new.pop()}) + '\n')
  return lines


def main() -> None:
  """Lists the runs of all experiments, or writes their records anew."""
  command, *path = sys.argv[1:]
  experiments = {
    folder: declared(found)
    for folder in index.experiments(Path('experiments'))
    if (found := getattr(plan.module(folder), 'EXPERIMENT', None))
  }
  if command == 'list':
    print(json.dumps({str(f): runs for f, runs in experiments.items()}))
    return
  before = json.loads(Path(path[0]).read_text('utf-8'))
  written = {
    folder: rehashed(folder, before[str(folder)], after)
    for folder, after in experiments.items()
  }
  for folder, lines in written.items():
    text = ''.join(lines)
    (folder / carry_out.RECORDS).write_text(text, 'utf-8')
    print(f'{folder}: {len(lines)} records')


if __name__ == '__main__':
  main()
