"""The list of all experiments: question, command, answer, status."""

from collections.abc import Iterator
from pathlib import Path

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.report import carry_out, plan
from pdl_jax.report.declare import Experiment

_HEAD = """# Experiments

One folder a question. `experiment.py` declares what is run, `records.jsonl` is
what the runs left behind, and everything else is made from it: `table.md`,
`table.tex` (booktabs), `table.csv` (every seed), figures, and `report.html`
(not kept here). `README.md` says what it means, negatives included. Records
name the commit and the packages they were made with; for what is measured in
one go `env.json` does, where it was measured since there is one.

```
python launch.py --sweep=experiments/NAME --dry_run  # which runs are missing
python launch.py --sweep=experiments/NAME            # makes them
python launch.py report experiments/NAME             # tables and figures
python launch.py report experiments --check          # do all still follow?
```

"""
_NOTE = '\nThis list is made by `python launch.py report experiments`.\n'


def experiments(folder: Path) -> list[Path]:
  """The experiment in a folder, or all those below it.

  Raises:
    ConfigError: there is none.
  """
  if (folder / 'experiment.py').is_file():
    return [folder]
  found = sorted(path.parent for path in folder.glob('*/experiment.py'))
  if not found:
    plan.module(folder)  # Says which there are.
  return found


def write(folder: Path, *, check: bool) -> None:
  """Writes, or compares, README.md of the folder of all experiments.

  Does nothing for the folder of one.

  Raises:
    DataError: with check, if it differs.
  """
  found = experiments(folder)
  if found == [folder]:
    return
  rows = ['| question | answer | runs | folder |', '| --- | --- | --- | --- |']
  rows += ['| ' + ' | '.join(_row(each, folder)) + ' |' for each in found]
  text = _HEAD + '\n'.join(rows) + '\n' + _NOTE
  path = folder / 'README.md'
  if not check:
    path.write_text(text, 'utf-8')
    print(f'wrote {path}')
  elif path.read_text('utf-8', 'replace') != text:
    raise DataError(
      f'{path} does not follow from the experiments; python launch.py '
      f'report {folder} writes it anew'
    )


def _row(experiment: Path, folder: Path) -> Iterator[str]:
  code = plan.module(experiment)
  yield (code.__doc__ or '').strip().splitlines()[0]
  yield _answer(experiment / 'README.md')
  declared = getattr(code, 'EXPERIMENT', None)
  yield _progress(declared, experiment) if declared else 'measured'
  place = experiment.relative_to(folder)
  yield f'[{place}]({place}/README.md)'


def _answer(readme: Path) -> str:
  """The first words in bold of its README, which are its answer.

  Raises:
    ConfigError: there is none.
  """
  text = readme.read_text('utf-8', 'replace') if readme.exists() else ''
  parts = text.split('**')
  if len(parts) < 3:
    raise ConfigError(
      f'{readme} has no answer: a sentence in bold that its table supports'
    )
  words = ' '.join(parts[1].split())
  return words.removeprefix('Answer: ').replace('|', r'\|')


def _progress(declared: Experiment, folder: Path) -> str:
  records = carry_out.read(folder)
  wanted = sum(
    len(study.variants) * len(study.seeds) for study in declared.studies
  )
  before = {study.before for study in declared.studies}
  done = sum(
    r['state'] == 'done' and r['row'] not in before for r in records
  )
  return f'{done} of {wanted}'
