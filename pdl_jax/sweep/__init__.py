"""Sweeps: named axes to cells, and cells to finished runs that survive.

Reading order: axes, claims, child, local, status; then, of the Ray engine,
ray_engine, placement and gang.
"""

from pdl_jax.sweep.axes import Cell, cells
from pdl_jax.sweep.local import Command, Outcome, run
from pdl_jax.sweep.placement import Wanted
from pdl_jax.sweep.ray_engine import parse_resources, run_on_ray
from pdl_jax.sweep.status import Row, format_dry_run, format_status, status

__all__ = [
  'Cell', 'Command', 'Outcome', 'Row', 'Wanted', 'cells', 'format_dry_run',
  'format_status', 'parse_resources', 'run', 'run_on_ray', 'status',
]  # fmt: skip
