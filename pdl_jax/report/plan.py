"""Plans the runs that an experiment declares: cells, folders, commands."""

import dataclasses
import functools
import importlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from pdl_jax.errors import ConfigError
from pdl_jax.report.declare import Experiment, Overrides, Study, Variant
from pdl_jax.sweep.axes import Cell, cell

# The code of an experiment, and of a benchmark.
CODE = ('experiment.py', '__main__.py')


@dataclasses.dataclass(frozen=True)
class Planned:
  """A declared run; `root` is the parent of its run folder."""

  cell: Cell
  root: Path
  flags: tuple[str, ...]

  @property
  def folder(self) -> Path:
    """The run folder."""
    return self.root / self.cell.run_id

  def command(self, run: Path) -> list[str]:
    """Returns the command line that makes the run in a folder."""
    return [
      sys.executable, 'launch.py', *self.flags, f'--workdir={run}'
    ]  # fmt: skip


def code(folder: Path) -> list[str]:
  """Returns which file of CODE a folder has, if any."""
  return [name for name in CODE if (folder / name).is_file()]


def module(folder: Path) -> ModuleType:
  """Imports experiments/NAME or benchmarks/NAME, below the current folder."""
  found = code(folder)
  if not found:
    known = sorted(path.parent.name for path in Path('experiments').glob(
      '*/experiment.py'
    ))  # fmt: skip
    raise ConfigError(
      f'there is no {folder / "experiment.py"}; experiments are: '
      f'{", ".join(known) or "none in this folder"}'
    )
  if '..' in folder.parts or folder.is_absolute():
    raise ConfigError(
      f'{folder} is not below {Path.cwd()}; run it from the folder that '
      'experiments/ is in'
    )
  return importlib.import_module(
    '.'.join([*folder.parts, found[0].removesuffix('.py')])
  )


def load(folder: Path) -> Experiment:
  """Returns the experiment that a folder declares; see `module`."""
  found = getattr(module(folder), 'EXPERIMENT', None)
  if not isinstance(found, Experiment):
    raise ConfigError(
      f'{folder / "experiment.py"} declares no EXPERIMENT; its docstring says '
      'how it is run'
    )
  return found


def root(config: str) -> Path:
  """Returns the folder for runs of a config and mode."""
  file, _, mode = config.partition(':')
  return Path('runs') / '-'.join(filter(None, (Path(file).stem, mode)))


def base(study: Study) -> Planned | None:
  """Returns the run that all variants start from, if the study has one."""
  if study.base is None:
    return None
  made = _planned(study.base.config, study.base.overrides, {})
  named = dataclasses.replace(
    made.cell,
    labels=('all others start from it',),
    # The hashes of the runs that start from it contain this name.
    run_id=f'{made.cell.run_id}-{made.cell.digest}',
  )
  return dataclasses.replace(made, cell=named)


def runs(study: Study, seed: int) -> Iterator[tuple[Variant, Planned]]:
  """Yields each variant with its run of a seed; several may share a run."""
  shared = dict(study.overrides)
  start = base(study)
  if start is not None:
    shared['model.pretrained'] = f'run:{start.folder}'
  for variant in study.variants:
    own = {**variant.overrides, 'seed': seed}
    yield variant, _planned(study.config, shared, own)


def _planned(name: str, shared: Overrides, own: Overrides) -> Planned:
  """Plans a run of a config; only its own overrides name its folder."""
  config = _config(name).copy_and_resolve_references()
  config.update_from_flattened_dict(dict(shared))
  made = cell(config, own)
  flags = (
    f'--config={name}',
    *(f'--config.{key}={value}' for key, value in shared.items()),
    *made.flags,
  )
  return Planned(made, root(name), flags)


@functools.lru_cache
def _config(config: str) -> ConfigDict:
  """Reads a config, once for a thousand runs."""
  file, _, mode = config.partition(':')
  get_config = runpy.run_path(file)['get_config']
  return get_config(mode) if mode else get_config()
