"""Tells what is wrong with a checkpoint: damage, another model, or the host."""

import contextlib
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from pdl_jax.errors import CheckpointError, HostError
from pdl_jax.train.checksum import (
  array_types,
  checksums,
  differences,
  json_crc,
  leaves_by_path,
)

PyTree = Any
# Messages of Orbax and TensorStore threads that outlive a failed save.
_LATE = (
  'Event loop is closed', 'cannot schedule new futures after shutdown',
  'cannot schedule new futures after interpreter shutdown',
)  # fmt: skip


class DamagedError(Exception):
  """The files of a step are not what was saved."""


def check_position(record: Mapping[str, Any], place: Path) -> bool:
  """Returns whether Grain's file has the position; else the record has it.

  With another number of processes the files do not fit. Then all processes must
  have stood at the one position that the record has, or CheckpointError is
  raised. DamagedError is raised if the file is not what was saved.
  """
  crcs = record['data_crc32']
  index, count = jax.process_index(), jax.process_count()
  if len(crcs) != count:
    if crcs and set(crcs) == {json_crc(record.get('position'))}:
      return False
    raise CheckpointError(
      f'{place} holds data positions of {len(crcs)} processes, not {count}, '
      'and not one for all: resume on as many, or without the data iterator'
    )
  path = place / 'data' / f'process_{index}-of-{count}.json'
  with reading(path):
    position = json.loads(path.read_text('utf-8'))
  if json_crc(position) != crcs[index]:
    raise DamagedError(f'{path.name}: its checksum differs')
  return True


def check_target(target: PyTree, saved: Mapping[str, str], place: Path) -> None:
  """Raises CheckpointError if `target` differs; Orbax would just cast it."""
  lines = differences(saved, array_types(target))
  if lines:
    raise CheckpointError(
      f'checkpoint {place} is of another model: {len(lines)} of {len(saved)}'
      f' leaves differ: {"; ".join(lines[:3])}'
    )
  for path, leaf in leaves_by_path(target).items():
    if leaf.sharding is None:
      raise ValueError(f'{path} of target has no sharding')
    leaf.sharding.shard_shape(leaf.shape)  # raises here what is not damage


def check_state(state: PyTree, record: Mapping[str, Any], place: Path) -> None:
  """Raises an error if leaves are not as they were when the step was saved.

  DamagedError is for those that were saved, CheckpointError for the others.
  """
  saved, now = record['checksums'], checksums(state)
  # Steps of earlier versions have all leaves.
  elsewhere = {path: saved[path] for path in record.get('elsewhere', ())}
  lines = differences(record['arrays'], array_types(state))
  lines += differences(saved, now | elsewhere)
  if lines:
    raise DamagedError(
      f'{len(lines)} of {len(saved)} leaves: {"; ".join(lines[:3])}'
    )
  lines = differences(elsewhere, {path: now[path] for path in elsewhere})
  if lines:
    raise CheckpointError(
      f'checkpoint {place} does not have the weights that the run left as they '
      f'were, and {len(lines)} of {len(elsewhere)} have changed since: '
      f'{"; ".join(lines[:3])}; put back the model that model.pretrained named'
    )


def _host_reason(error: BaseException) -> str | None:
  """Returns why the operating system refused, perhaps through TensorStore."""
  if isinstance(error, OSError):
    code = error.errno
  else:
    found = re.search(r"os_error_code='(\d+)'", str(error))
    code = int(found[1]) if found else None
  return os.strerror(code) if code else None


def hush_libraries() -> None:
  """Keeps Orbax from printing what `host_errors` says in one line."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_untold)
  before = sys.unraisablehook

  def not_late(args: Any) -> None:
    if str(args.exc_value) not in _LATE:
      before(args)

  if getattr(before, '__name__', '') != not_late.__name__:
    sys.unraisablehook = not_late


def _is_untold(record: logging.LogRecord) -> bool:
  error = record.exc_info[1] if record.exc_info else None
  if error is None:
    return True
  return _host_reason(error) is None and str(error) not in _LATE


@contextlib.contextmanager
def host_errors(doing: str, path: Path) -> Iterator[None]:
  """Turns an error of the operating system into HostError with the path."""
  try:
    yield
  except (OSError, ValueError) as error:
    reason = _host_reason(error)
    if reason is None:
      raise
    raise HostError(
      f'cannot {doing} {path}: {reason}; mend that and the same command '
      'continues from the last whole checkpoint'
    ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
  """Tells damaged files (DamagedError) from a failing host and from bugs."""
  try:
    yield
  except Exception as error:
    # Orbax raises a bare Exception from TensorStore's ValueError.
    cause = error.__cause__ if type(error) is Exception else error
    reason = _host_reason(cause) if cause else None
    if reason and reason != os.strerror(errno.ENOENT):
      raise HostError(f'cannot read {path}: {reason}') from error
    # Garbled metadata makes look-ups in Orbax fail; the target was checked.
    if isinstance(
      cause, FileNotFoundError | ValueError | LookupError | AttributeError
    ):
      # TensorStore appends its whole specification in brackets.
      brief = re.split(r' \[(?:tensorstore_spec|source)', str(cause))[0]
      raise DamagedError(f'{path.name} is unreadable: {brief}') from error
    raise
