"""Whole documents for language modelling: packed rows, and windows.

A document is the ids of its text between a start-of-text token, for most
tokenizers the end-of-text token again, and an end-of-text token: the first is
what the first real token is predicted from, the second is a target.
"""

from functools import lru_cache

import numpy as np

from pdl_jax.data.examples import (
  Batch,
  Lengths,
  empty_example,
  padded_example,
)
from pdl_jax.data.sources import Source
from pdl_jax.data.tokenizer import Tokenizer

# Encoded documents that are kept: the pieces of a row, and of a long document,
# come from few.
_CACHED = 256
# Rows with room left that the next piece is tried in.
_OPEN_ROWS = 64


class Documents:
  """The usable documents of a split as ids, encoded when asked for."""

  def __init__(
    self, source: Source, usable: np.ndarray, tokenizer: Tokenizer
  ):
    self.source, self.usable, self.tokenizer = source, usable, tokenizer
    self.ids = lru_cache(_CACHED)(self._ids)

  def _ids(self, index: int) -> np.ndarray:
    record = self.source[int(self.usable[index])]
    (ids,) = self.tokenizer.encode([record['target'].strip()])
    self.tokenizer.check_rows(ids, f'record {record["id"]}: its text')
    start, end = self.tokenizer.start_of_text, self.tokenizer.end_of_text
    return np.asarray([start, *ids, end], np.int32)


class Windows:
  """Every token of the documents once, after at most P tokens before it.

  A target is the next T tokens of a document, and its prompt stands before it.
  The first prompt of a document is the end of text alone.
  """

  def __init__(
    self, documents: Documents, sizes: np.ndarray, lengths: Lengths
  ):
    """Args: sizes: ids of each document, both end-of-text tokens included."""
    self.documents, self.lengths = documents, lengths
    self._document, self._start, _ = _cut(sizes, lengths.target)

  def __len__(self) -> int:
    return len(self._document)

  def record(self, index: int) -> dict[str, str]:
    """See `Examples`; the source is empty."""
    docs, number = self.documents, int(self._document[index])
    record = docs.source[int(docs.usable[number])]
    _, target = self.prompt_and_target(index)
    start = int(self._start[index])
    return {
      **record,
      'id': f'{record["id"]}@{start}',
      'target': docs.tokenizer.decode(target),
    }

  def prompt_and_target(self, index: int) -> tuple[list[int], list[int]]:
    """See `Examples`."""
    ids, start = self._ids(index), int(self._start[index])
    first = max(0, start + 1 - self.lengths.prompt)
    target = ids[start + 1 : start + 1 + self.lengths.target]
    return ids[first : start + 1].tolist(), target.tolist()

  def __getitem__(self, index: int) -> Batch:
    """See `Rows`."""
    pad = self.documents.tokenizer.end_of_text
    return padded_example(*self.prompt_and_target(index), self.lengths, pad)

  def _ids(self, index: int) -> np.ndarray:
    return self.documents.ids(int(self._document[index]))


class Packed:
  """Rows of L tokens, each of one or more pieces of documents.

  Documents are cut into pieces of at most L predictions; short pieces share a
  row. Each piece is a segment of its own, with positions from 0: no attention
  and no loss across documents.
  """

  def __init__(
    self, documents: Documents, sizes: np.ndarray, lengths: Lengths
  ):
    """Args: see `Windows`."""
    self.documents, self._length = documents, lengths.sequence
    self._document, self._start, pieces = _cut(sizes, self._length)
    self._size, self._rows = pieces, pack(pieces, self._length)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Batch:
    """Makes a row, the arrays of `empty_example` with T = L."""
    length = self._length
    # L = P + T - 1 with a prompt of one token: every position is a target.
    row = empty_example(
      Lengths(1, length), self.documents.tokenizer.end_of_text
    )
    row['reads'][:] = np.arange(length)
    used = 0
    for segment, piece in enumerate(self._rows[index], start=1):
      ids, start = self._ids(piece), int(self._start[piece])
      size = int(self._size[piece])
      place = slice(used, used + size)
      row['tokens'][place] = ids[start : start + size]
      row['labels'][place] = ids[start + 1 : start + 1 + size]
      row['segments'][place] = segment
      row['positions'][place] = np.arange(size)
      row['where'][place] = True
      used += size
    return row

  def _ids(self, piece: int) -> np.ndarray:
    return self.documents.ids(int(self._document[piece]))


def _cut(
  sizes: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts pieces: their document, first id and number of predictions."""
  predictions = np.asarray(sizes) - 1
  counts = -(-predictions // length)
  document = np.repeat(np.arange(len(predictions)), counts)
  first = np.repeat(np.cumsum(counts) - counts, counts)
  start = (np.arange(len(document)) - first) * length
  return document, start, np.minimum(length, predictions[document] - start)


def pack(sizes: np.ndarray, length: int) -> list[list[int]]:
  """Says which pieces share a row: first fit, the largest first.

  Args:
    sizes: each in [1, length].
    length: tokens of a row.

  Returns:
    the pieces of each row, by their index; every piece once.
  """
  rows: list[list[int]] = []
  still_open: list[tuple[int, list[int]]] = []
  for piece in np.argsort(-np.asarray(sizes), kind='stable').tolist():
    size = int(sizes[piece])
    for place, (room, row) in enumerate(still_open):
      if size <= room:
        row.append(piece)
        still_open[place] = (room - size, row)
        break
    else:
      rows.append([piece])
      if size < length:
        still_open.append((length - size, rows[-1]))
        del still_open[:-_OPEN_ROWS]
  return rows
