"""Whole documents for language modelling: packed rows, and windows.

A document is [start of text, ids, end of text]. The first predicts the first
real token, the last is a target. Most tokenizers have one token for both.
"""

from functools import lru_cache

import numpy as np

from pdl_jax.data.examples import Batch, Examples, Lengths, empty_example
from pdl_jax.data.sources import Source
from pdl_jax.data.tokenizer import Tokenizer

_CACHED = 256  # encoded documents; nearby pieces come from few
_OPEN_ROWS = 64  # rows that the next piece is tried in


class Documents:
  """The usable documents of a split as ids, encoded on demand."""

  def __init__(self, source: Source, usable: np.ndarray, tokenizer: Tokenizer):
    self.source, self.usable, self.tokenizer = source, usable, tokenizer
    self.ids = lru_cache(_CACHED)(self._ids)

  def _ids(self, index: int) -> np.ndarray:
    record = self.source[int(self.usable[index])]
    (ids,) = self.tokenizer.encode([record['target'].strip()])
    self.tokenizer.check_rows(ids, f'record {record["id"]}: its text')
    start, end = self.tokenizer.start_of_text, self.tokenizer.end_of_text
    return np.asarray([start, *ids, end], np.int32)


class Windows(Examples):
  """Covers every token once, in targets of T after prompts of at most P."""

  def __init__(self, documents: Documents, sizes: np.ndarray, lengths: Lengths):
    """`sizes` counts the ids of each document, start and end included."""
    self.documents, self.lengths = documents, lengths
    self.pad = documents.tokenizer.end_of_text
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

  def _ids(self, index: int) -> np.ndarray:
    return self.documents.ids(int(self._document[index]))


class Packed:
  """Rows of L tokens, each of one or more pieces of documents.

  A piece has at most L predictions. It is a segment of its own with positions
  from 0: attention and loss never cross documents.
  """

  def __init__(self, documents: Documents, sizes: np.ndarray, lengths: Lengths):
    self.documents, self._length = documents, lengths.sequence
    self._document, self._start, pieces = _cut(sizes, self._length)
    self._size, self._rows = pieces, pack(pieces, self._length)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Batch:
    """Makes a row: the arrays of `empty_example` with T = L."""
    length = self._length
    # With a prompt of one token, L = T: every position is a target.
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
  """Packs pieces of sizes in [1, length] into rows: first fit, largest first.

  Returns the indices of the pieces of each row; every piece occurs once.
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
