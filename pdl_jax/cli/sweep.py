"""Runs a sweep, or what an experiment declares."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pdl_jax.cli import given
from pdl_jax.cluster import options
from pdl_jax.errors import ConfigError

if TYPE_CHECKING:
  from pdl_jax.sweep.axes import Cell
  from pdl_jax.sweep.child import Command
  from pdl_jax.sweep.local import Outcome


def main(arguments: Sequence[str]) -> int:
  """Runs the cells of --sweep, or says which they are."""
  from pdl_jax.sweep import ray_engine

  given.begin()
  ray_engine.parse_resources(given.RESOURCES.value)
  named = [
    axis
    for value in given.SWEEP.value
    for axis in ([value] if '=' in value else value.split(','))
  ]
  if named == ['experiments'] or any('/' in x.split('=')[0] for x in named):
    return _run_experiment(Path(os.path.relpath(','.join(named))))
  return _run_axes(named, os.path.abspath(arguments[0]))


def _run_axes(named: Sequence[str], program: str) -> int:
  from pdl_jax.sweep import axes
  from pdl_jax.sweep.status import format_dry_run, format_status, status

  folder = given.config_folder()
  root = folder if given.WORKDIR.value is None else Path(given.WORKDIR.value)
  overrides = given.overrides('config')
  cells = axes.cells(
    given.config_module(), named, given.CONFIG.value, overrides
  )
  if given.DRY_RUN.value:
    print(format_dry_run([('', root, cells)], given.WORKERS.value, {}))
    return 0

  def command(cell: 'Cell', run: Path) -> list[str]:
    return [
      sys.executable, program, f'--config={given.config_file()}',
      f'--workdir={run}',
      *(f'--config.{key}={value}' for key, value in overrides.items()),
      *cell.flags,
    ]  # fmt: skip

  outcome = _run_cells(cells, root, command)
  print(format_status(status(root, cells)))
  return 1 if outcome.failed else 0


def _run_experiment(folder: Path) -> int:
  from pdl_jax.report import carry_out, plan
  from pdl_jax.sweep.status import format_dry_run

  if given.flags.FLAGS['config'].present:
    raise ConfigError(
      f'--config does not go with --sweep={folder}, whose studies name theirs'
    )
  declared = plan.load(folder)
  if given.DRY_RUN.value:
    groups = [
      (f'{group.title}:', group.root, group.cells)
      for group in carry_out.planned(declared)
    ]
    known = carry_out.recorded(declared, carry_out.read(folder))
    print(format_dry_run(groups, given.WORKERS.value, known))
    return 0
  return 1 if carry_out.carry_out(declared, folder, _run_cells) else 0


def _run_cells(
  cells: 'Sequence[Cell]', root: Path, command: 'Command'
) -> 'Outcome':
  """Runs cells by the engine of the flags."""
  from pdl_jax.sweep import child, local, ray_engine
  from pdl_jax.sweep.placement import Wanted

  resources = ray_engine.parse_resources(given.RESOURCES.value)
  hosts = given.HOSTS.value
  more = options.of_cells(hosts)

  def line(cell: 'Cell', run: Path) -> list[str]:
    return [*command(cell, run), *more]

  how = given.WORKERS.value, given.RETRIES.value, given.FAIL_FAST.value
  if hosts > 1 and given.ENGINE.value != 'ray':
    raise ConfigError(
      f'--hosts_per_cell={hosts} needs --engine=ray; this machine alone '
      f'rehearses it by --processes={hosts}'
    )
  print(f'{len(cells)} cells; each prints to {root}/CELL/log.txt', flush=True)
  if given.ENGINE.value == 'ray':
    with ray_engine.engine(root, line, Wanted(resources, hosts)) as start:
      return local.run(cells, root, *how, start)
  return local.run(cells, root, *how, partial(child.start, root, line))
