"""Lists all experiments: question, answer, progress, folder."""

from collections.abc import Iterator
from pathlib import Path

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.report import carry_out, plan
from pdl_jax.report.declare import Experiment

_COLUMNS = '| question | answer | runs | folder |'
_NOTE = '\nThis list is made by `python launch.py report {}`.\n'


def experiments(folder: Path) -> list[Path]:
  """Returns the experiment in a folder, or all those below it."""
  if plan.code(folder):
    return [folder]
  found = sorted(path for path in folder.glob('*') if plan.code(path))
  if not found:
    plan.module(folder)  # Raises, and names the experiments that exist.
  return found


def write(folder: Path, *, check: bool) -> None:
  """Writes the list in README.md of a folder of experiments.

  Text above the list stays. `check` only compares, and raises DataError if the
  list differs. A folder of one experiment has no list.
  """
  found = experiments(folder)
  if found == [folder]:
    return
  rows = [_COLUMNS, '| --- | --- | --- | --- |']
  rows += ['| ' + ' | '.join(_row(each, folder)) + ' |' for each in found]
  path = folder / 'README.md'
  kept = path.read_text('utf-8', 'replace') if path.exists() else ''
  head, *_ = kept.partition(_COLUMNS)
  text = head + '\n'.join(rows) + '\n' + _NOTE.format(folder)
  if not check:
    path.write_text(text, 'utf-8')
    print(f'wrote {path}')
  elif kept != text:
    raise DataError(
      f'{path} does not follow from the experiments; python launch.py '
      f'report {folder} writes it anew'
    )


def _row(experiment: Path, folder: Path) -> Iterator[str]:
  code = plan.module(experiment)
  question, *_ = (code.__doc__ or '').strip().splitlines() or ['']
  if not question:
    raise ConfigError(
      f'{experiment / plan.code(experiment)[0]} has no question: its docstring '
      'begins with one, which the list quotes'
    )
  yield question
  yield _answer(experiment / 'README.md')
  declared = getattr(code, 'EXPERIMENT', None)
  yield _progress(declared, experiment) if declared else 'measured'
  place = experiment.relative_to(folder)
  yield f'[{place}]({place}/README.md)'


def _answer(readme: Path) -> str:
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
  wanted = sum(len(x.variants) * len(x.seeds) for x in declared.studies)
  before = {study.before for study in declared.studies}
  done = sum(r['state'] == 'done' and r['row'] not in before for r in records)
  return f'{done} of {wanted}'
