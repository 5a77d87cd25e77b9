"""Writes our own files whole, and reads what may have been torn since.

A shape says what is expected: a type, `list[X]`, `dict[str, X]`, a union, a
Literal, a dataclass, or a dict of field -> shape. Fields with a default, or
named 'field?', may be missing. A mismatch is refused in one line with file,
line and field.
"""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pdl_jax.errors import DataError

MEND = 'bring it back from a copy, or make it again'
_NAMES = {
  dict: 'an object', list: 'a list', str: 'text', bool: 'true or false',
  int: 'an integer', float: 'a number', types.NoneType: 'null',
}  # fmt: skip


def read_json(path: Path, shape: Any = Any, mend: str = MEND) -> Any:
  """Reads a file that is one JSON value.

  Args:
    shape: the expected shape.
    mend: what to do about a mismatch, for the error.

  Raises:
    DataError: it is missing, unreadable, torn, or of another shape.
  """
  return _parse(_text(path, mend), shape, str(path), mend)


def read_lines(
  path: Path, shape: Any = Any, mend: str = MEND, *, torn_end: bool = False
) -> list[Any]:
  """Reads a file with one JSON value per line; otherwise like `read_json`.

  With `torn_end`, a last line that a crash has torn is left out.
  """
  *lines, end = _text(path, mend).split('\n')
  lines += [end] * (end != '' and not torn_end)
  return [
    _parse(line, shape, f'{path}:{number}', mend)
    for number, line in enumerate(lines, start=1)
  ]


def write_whole(path: Path, text: str, mark: str = 'partial') -> None:
  """Writes a file at once or not at all.

  Those who may write one file at the same time each need a `mark` of their own.
  """
  partial = path.with_name(f'{path.name}.{mark}')
  partial.write_text(text, 'utf-8')
  partial.replace(path)


def _text(path: Path, mend: str) -> str:
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    what = f'is not UTF-8 text (byte {error.start})'
  except OSError as error:
    what = f'cannot be read: {error.strerror}'
  raise DataError(f'{path} {what}; {mend}')


def _parse(text: str, shape: Any, where: str, mend: str) -> Any:
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    what = f'is torn or altered: no JSON ({error})' if text else 'is empty'
    raise DataError(f'{where} {what}; {mend}') from None
  if found := fault(value, shape):
    raise DataError(f'{where}: {found}; {mend}')
  return value


def fault(value: Any, shape: Any, at: str = '') -> str:
  """Returns what is wrong with a value, and where in it; '' if nothing is."""
  if dataclasses.is_dataclass(shape):
    shape = {
      field.name + '?' * (
        field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
      ): field.type
      for field in dataclasses.fields(shape)
    }  # fmt: skip
  origin, inner = get_origin(shape), get_args(shape)
  if shape is Any or (origin is Literal and value in inner):
    return ''
  if origin is types.UnionType:
    faults = [fault(value, kind, at) for kind in inner]
    if not all(faults):
      return ''
    if isinstance(value, dict) and dataclasses.is_dataclass(inner[-1]):
      return faults[-1]
  elif isinstance(shape, dict) and isinstance(value, dict):
    for name, kind in shape.items():
      key, at_key = name.removesuffix('?'), f'{at}.{name}'.strip('.?')
      if key not in value and key == name:
        return f'there is no field {at_key}'
      if key in value and (found := fault(value[key], kind, at_key)):
        return found
    return ''
  elif origin is dict and isinstance(value, dict):
    each = ((f'{at}.{k}'.strip('.'), v) for k, v in value.items())
    return next(filter(None, (fault(v, inner[1], k) for k, v in each)), '')
  elif origin is list and isinstance(value, list):
    # A shortcut, because most of what is read is long lists of plain values.
    plain = {int, float} if inner[0] is float else {*inner}
    if set(map(type, value)) <= plain:
      return ''
    each = ((f'{at}[{i}]', v) for i, v in enumerate(value))
    return next(filter(None, (fault(v, inner[0], k) for k, v in each)), '')
  elif isinstance(shape, type) and _is(value, shape):
    return ''
  return f'{at or "the whole"} is {_NAMES[type(value)]}, not {_named(shape)}'


def _is(value: Any, kind: type) -> bool:
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else kind)


def _named(shape: Any) -> str:
  if isinstance(shape, dict) or dataclasses.is_dataclass(shape):
    return 'an object'
  if get_origin(shape) is Literal:
    return f'one of {", ".join(map(str, get_args(shape)))}'
  if get_origin(shape) is types.UnionType:
    return ' or '.join(map(_named, get_args(shape)))
  return _NAMES[get_origin(shape) or shape]
