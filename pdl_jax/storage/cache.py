"""Keeps what is slow to make in the user's cache folder.

A file's name hashes all facts that its bytes follow from, the library's code
too. A file that is torn, altered or absent is made again.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdl_jax.process import user_cache

_MOST = 64  # files of a kind; the oldest go
_DIGEST = hashlib.sha256().digest_size


def kept(kind: str, facts: Any, make: Callable[[], bytes]) -> bytes:
  """Returns the bytes that `make` gives, from an earlier call if it can.

  Args:
    kind: the name of a subfolder.
    facts: JSON of what the bytes follow from, besides the code.
  """
  text = json.dumps([code(), facts], sort_keys=True)
  name = hashlib.sha256(text.encode())
  path = user_cache(kind) / name.hexdigest()
  # A file under another's name is as wrong as a torn one.
  seal = lambda made: hashlib.sha256(name.digest() + made).digest()  # noqa: E731
  with contextlib.suppress(OSError):
    found = path.read_bytes()
    if found[:_DIGEST] == seal(found[_DIGEST:]):
      return found[_DIGEST:]
  made = make()
  with contextlib.suppress(OSError):  # A cache that cannot be written is none.
    _write(path, seal(made) + made)
  return made


def _write(path: Path, whole: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.{os.getpid()}')
  try:
    partial.write_bytes(whole)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
  by_age = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime)
  for old in by_age[:-_MOST]:
    old.unlink(missing_ok=True)


@functools.cache
def code() -> str:
  """Hashes the library's code."""
  digest = hashlib.sha256()
  for path in sorted(Path(__file__).parents[1].rglob('*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def content(place: str) -> str | None:
  """Hashes a file, or all files of a folder; None if there is neither."""
  root = Path(place)
  if not place or not root.exists():
    return None
  digest = hashlib.sha256()
  found = [root] if root.is_file() else sorted(root.rglob('*'))
  for path in found:
    if path.is_file():
      with path.open('rb') as file:
        own = hashlib.file_digest(file, 'sha256').hexdigest()
      digest.update(f'{path.relative_to(root)}\0{own}\n'.encode())
  return digest.hexdigest()
