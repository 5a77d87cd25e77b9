"""Sweeps: named axes to cells, and cells to finished runs that survive.

Reading order: axes, queue (and process below it), local, overview.
"""

from pdl_jax.sweep.axes import Cell, cells
from pdl_jax.sweep.local import Outcome, run
from pdl_jax.sweep.overview import Row, format_dry_run, format_status, status

__all__ = [
  'Cell', 'Outcome', 'Row', 'cells', 'format_dry_run', 'format_status', 'run',
  'status',
]  # fmt: skip
