"""Checkpoints that detect damage: Orbax, and a checksum per leaf.

A step is `<workdir>/checkpoints/<step>/`: the state, the data iterator's
position and a record. The record holds shape, dtype and checksum of each leaf,
a CRC of the position, the metrics, the caller's meta, and a CRC of itself.
Leaves that are kept elsewhere are not saved, but their checksums are.
`<workdir>/saves.json` lists the steps that were saved, to tell what is missing.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from pdl_jax.errors import CheckpointError, HostError
from pdl_jax.train.checksum import (
  array_types,
  checksums,
  json_crc,
  path_name,
)
from pdl_jax.train.integrity import (
  DamagedError,
  check_position,
  check_state,
  check_target,
  host_errors,
  hush_libraries,
  reading,
)
from pdl_jax.train.optimizer import merge
from pdl_jax.train.saves import Saves

PyTree = Any


class Checkpointer:
  """Saves in the background; restores the newest intact step.

  Keeps the last `keep` steps and the one with the lowest `metrics[best]`. Only
  one run may write to a folder: its first save removes what a killed run left
  half written. Use `with`, or `close`, to have the last save on disk.

  Args:
    elsewhere: paths of leaves that never change and can be had again, bit for
      bit. They are not saved; a restore takes them from its target.

  Attributes:
    damaged: one line for each step that this object has set aside.
    missing: a line if a step later than the newest on disk was, or may have
      been, saved.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    keep: int = 3,
    best: str = 'loss',
    elsewhere: Collection[str] = (),
  ) -> None:
    self.directory = Path(workdir).absolute() / 'checkpoints'
    self.damaged: list[str] = []
    self.missing = ''
    self._elsewhere = sorted(elsewhere)
    self._saves = Saves(self.directory.with_name('saves.json'), best)
    self._cleared = False
    policy = policies.AnyPreservationPolicy(
      [policies.LatestN(keep), self._saves]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    hush_libraries()
    with host_errors('open', self.directory):
      self._manager = ocp.CheckpointManager(self.directory, options=options)
    if self._saves.torn:
      self.missing = (
        f'{self._saves.path} is torn or altered: whether a later step was '
        'saved is not known'
      )
    for step in self._manager.all_steps():
      # A step with a damaged record is never the best; restoring names it.
      with contextlib.suppress(DamagedError):
        self._saves.add(step, self._read_record(step)['metrics'])

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def wait(self) -> None:
    """Waits until the last save is on disk; HostError if it failed."""
    self._end_save(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits and ends Orbax's threads; HostError if the last save failed."""
    self._end_save(self._manager.close)

  def _end_save(self, end: Callable[[], object]) -> None:
    try:
      with host_errors('write', self.directory):
        end()
        self._saves.end()
    except HostError:
      # A full disk has no room even for an error message.
      self._remove_unfinished()
      raise
    finally:
      self._saves.forget()

  def measured(self, step: int) -> bool:
    """Whether a step's loss is known, even if it is not finite."""
    return self._saves.loss(step) is not None

  def measure(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds metrics to a step that was saved without them."""
    self._saves.add(step, _plain(metrics))
    with host_errors('write', self._saves.path):
      self._saves.write()

  def latest_step(self) -> int | None:
    """Returns the newest step that is saved or being saved."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step with the lowest finite loss; the later one of a tie."""
    return self._saves.best(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: PyTree,
    iterator: grain.DatasetIterator | None,
    metrics: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
  ) -> bool:
    """Starts a save; then `state` may be donated, and `iterator` advanced.

    Returns False, and writes nothing, if `step` is the newest already. A loop's
    last save may fall on a periodic one.

    Args:
      metrics: numbers; the one named `best` ranks the step.
      meta: JSON, NumPy numbers and arrays; restoring returns it.

    Raises:
      CheckpointError: the folder holds a later step.
      HostError: this save or the one before it could not be written.
    """
    latest = self.latest_step()
    if latest == step:
      return False
    if latest is not None and step < latest:
      raise CheckpointError(
        f'cannot save step {step}: {self.directory} holds step {latest}'
        ' already; resume from that or use another workdir'
      )
    record = {
      'arrays': array_types(state),
      'checksums': checksums(state),
      'elsewhere': self._elsewhere,
      'data_crc32': _gathered_crc(iterator),
      'position': None if iterator is None else iterator.get_state(),
      'metrics': _plain(metrics or {}),
      'meta': _plain(meta or {}),
    }
    items: dict[str, ocp.args.CheckpointArgs] = {
      'state': ocp.args.StandardSave(_without(state, self._elsewhere)),
      'meta': ocp.args.JsonSave({**record, 'crc32': json_crc(record)}),
    }
    if iterator is not None:
      items['data'] = grain.checkpoint.CheckpointSave(iterator)
    self.wait()
    self._saves.begin(step, record['metrics'])
    with host_errors('write', self.directory):
      if not self._cleared:
        self._remove_unfinished()
      self._cleared = True
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    return True

  def restore_latest(
    self, target: PyTree, iterator: grain.DatasetIterator | None
  ) -> tuple[int, PyTree, dict[str, Any]] | None:
    """Restores the newest intact step; renames damaged ones `<step>.damaged`.

    Args:
      target: pytree of jax.ShapeDtypeStruct or arrays, sharded on any mesh;
        arrays where leaves were not saved.
      iterator: moved to the position of the same step; None leaves data alone.

    Returns:
      (step, state, meta), or None if nothing was ever saved here.

    Raises:
      CheckpointError: all steps are damaged, or `target` is another model, or
        its leaves that were not saved have changed.
    """
    self.wait()
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._restore(step, target, iterator)
      except DamagedError as error:
        self._set_aside(step, error)
      else:
        self._note_missing(step)
        return step, *restored
    self._note_missing(0)
    damaged = sorted(path.name for path in self.directory.glob('*.damaged'))
    if damaged:
      raise CheckpointError(
        f'no intact checkpoint in {self.directory}, only {", ".join(damaged)};'
        ' remove them to start anew'
      )
    return None

  def restore_step(
    self,
    step: int,
    target: PyTree,
    iterator: grain.DatasetIterator | None = None,
  ) -> tuple[PyTree, dict[str, Any]]:
    """Restores (state, meta) of one step; CheckpointError if it cannot."""
    self.wait()
    steps = self._manager.all_steps()
    if step not in steps:
      raise CheckpointError(f'no step {step} in {self.directory}, only {steps}')
    try:
      return self._restore(step, target, iterator)
    except DamagedError as error:
      raise CheckpointError(
        f'checkpoint {self.directory / str(step)} is damaged: {error}'
      ) from error

  def _restore(
    self, step: int, target: PyTree, iterator: grain.DatasetIterator | None
  ) -> tuple[PyTree, dict[str, Any]]:
    place = self.directory / str(step)
    record = self._read_record(step)
    check_target(target, record['arrays'], place)
    has_file = iterator is None or check_position(record, place)
    saved = _abstract(_without(target, record.get('elsewhere', ())))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(saved))
    with reading(place / 'state'):
      state = self._manager.restore(step, args=args)['state']
    state = merge(state, target)
    check_state(state, record, place)
    own = int(getattr(state, 'step', step))
    if own != step:
      raise DamagedError(f'its state is of step {own}: renamed or copied')
    if iterator is not None and not has_file:
      iterator.set_state(record['position'])
    elif iterator is not None:  # last, so that a damaged step moves nothing
      data = grain.checkpoint.CheckpointRestore(iterator)
      try:
        self._manager.restore(step, args=ocp.args.Composite(data=data))
      except (LookupError, TypeError) as error:  # its checksum was right
        raise CheckpointError(
          f'{place} is of another data pipeline: {error!r}'
        ) from error
    return state, record['meta']

  def _read_record(self, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    with reading(self.directory / str(step) / 'meta'):
      record = dict(self._manager.restore(step, args=args)['meta'])
      crc = record.pop('crc32')
    if crc != json_crc(record):
      raise DamagedError('meta: its checksum differs')
    return record

  def _note_missing(self, step: int) -> None:
    later = [
      x
      for x in self._saves.after(step)
      if not (self.directory / f'{x}.damaged').exists()
    ]
    if later:
      self.missing = f'missing: step {max(later)}, saved in {self.directory}'

  def _set_aside(self, step: int, error: DamagedError) -> None:
    place = self.directory / str(step)
    aside = place.with_name(f'{step}.damaged')
    with host_errors('rename', place):
      if jax.process_index() == 0:
        if aside.exists():  # from an earlier run through the same step
          shutil.rmtree(aside)
        place.rename(aside)
      multihost_utils.sync_global_devices(f'set_aside_{step}')
      self._manager.reload()
    line = f'checkpoint {place} is damaged, now {aside.name}: {error}'
    self.damaged.append(line)
    logging.warning('%s', line)

  def _remove_unfinished(self) -> None:
    if jax.process_index() == 0:
      for path in self.directory.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
        shutil.rmtree(path, ignore_errors=True)


def _without(tree: PyTree, paths: Collection[str]) -> PyTree:
  """Puts None in the place of leaves."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: None if path_name(path) in paths else x, tree
  )


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
  def convert(item: object) -> object:
    if isinstance(item, np.generic | np.ndarray | jax.Array):
      return item.tolist()
    raise TypeError(f'meta and metrics must fit in JSON, not {type(item)}')

  return json.loads(json.dumps(dict(value), default=convert))


def _gathered_crc(iterator: grain.DatasetIterator | None) -> list[int]:
  if iterator is None:
    return []
  crc = np.uint32(json_crc(iterator.get_state()))
  return multihost_utils.process_allgather(crc).tolist()
