"""One line of a JSON lines file: what it holds, or why it is no record."""

import json
from collections.abc import Mapping
from typing import Any

from pdl_jax.data import schema

_NAMED = 10  # fields of a record that an error lists


class BadRecordError(ValueError):
  """A line that is no record; `reason` is what it is counted under."""

  def __init__(self, reason: str, text: str) -> None:
    super().__init__(text)
    self.reason = reason


def parse(line: bytes) -> dict[str, Any]:
  """Reads one line.

  Raises:
    BadRecordError: it is no JSON object in UTF-8, or a key stands twice.
  """
  if b'\0' in line:
    raise BadRecordError('nul', 'has a NUL byte in it')
  try:
    value = json.loads(line.decode(), object_pairs_hook=_object)
  except BadRecordError:
    raise
  except UnicodeDecodeError as error:
    raise BadRecordError('not_utf8', f'is not UTF-8 ({error})') from error
  except (ValueError, RecursionError) as error:
    if line.endswith(b'\n'):
      raise BadRecordError('not_json', f'is no JSON ({error})') from error
    raise BadRecordError(
      'torn_line', f'is torn: the file ends inside it ({error})'
    ) from error
  if not isinstance(value, dict):
    kind = type(value).__name__
    raise BadRecordError('not_an_object', f'is a JSON {kind}, not an object')
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise BadRecordError('repeated_key', f'has the key {twice!r} twice')
  return found


def check(record: Mapping[str, Any], fields: Mapping[str, str]) -> None:
  """Checks the fields that are used; the others may be anything.

  Raises:
    BadRecordError: a field is missing, no text or not encodable, or the target
      is empty.
  """
  for field, stored in fields.items():
    what = f'field {stored!r}' + (f' ({field})' if field != stored else '')
    if stored not in record:
      names = ', '.join(sorted(record)[:_NAMED]) or 'none'
      raise BadRecordError('missing_field', f'has no {what}, but {names}')
    text = schema.as_text(record[stored], field)
    if text is None:
      kind = type(record[stored]).__name__
      raise BadRecordError('not_a_string', f'has a {kind} as {what}')
    if '\0' in text:
      raise BadRecordError('nul', f'has a NUL character in {what}')
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise BadRecordError('lone_surrogate', f'has half a character in {what}')
    if field == 'target' and not text.strip():
      raise BadRecordError('empty_target', f'has an empty {what}')
