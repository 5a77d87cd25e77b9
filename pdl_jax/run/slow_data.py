"""What takes long in data, made once on a machine: surveys and tokenizers.

Everything here is what `pipeline.survey` and `Tokenizer.train` would give.
"""

import dataclasses
import importlib.metadata
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdl_jax.data import pipeline
from pdl_jax.data.examples import Lengths
from pdl_jax.data.pipeline import Survey
from pdl_jax.data.sources import Source
from pdl_jax.data.tasks import Task
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.storage import cache


def survey(
  source: Source, task: Task, tokenizer: Tokenizer, lengths: Lengths, limit: int
) -> Survey:
  """Returns `pipeline.survey`; data that are no files here are not kept."""
  text = cache.content(source.place)
  arguments = source, task, tokenizer, lengths, limit
  if text is None:
    return pipeline.survey(*arguments)
  facts = {
    'text': [
      text, source.fingerprint, source.name, source.split, source.called,
      len(source), dict(source.fields), dict(source.metadata),
    ],
    'tokenizer': [
      tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.end_of_turn,
      tokenizer.end_of_text, _version(),
    ],
    'task': [dict(task.instructions), task.turns, task.documents],
    'lengths': dataclasses.asdict(lengths),
    'limit': limit,
  }  # fmt: skip
  found = cache.kept(
    'surveys', facts, lambda: _to_bytes(pipeline.survey(*arguments))
  )
  return _from_bytes(found)


def tokenizer(texts: Sequence[str], vocab_size: int, name: str) -> Tokenizer:
  """Returns `Tokenizer.train`."""
  facts = [texts, vocab_size, _version()]

  def make() -> bytes:
    return Tokenizer.train(texts, vocab_size, name).definition.encode()

  return Tokenizer.read(cache.kept('tokenizers', facts, make).decode(), name)


def _version() -> str:
  return importlib.metadata.version('tokenizers')


def _to_bytes(seen: Survey) -> bytes:
  file = io.BytesIO()
  fields: dict[str, Any] = {
    field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)
  }
  np.savez(file, **fields)
  return file.getvalue()


def _from_bytes(found: bytes) -> Survey:
  with np.load(io.BytesIO(found)) as arrays:
    fields = {name: arrays[name] for name in arrays.files}
  return Survey(**{
    name: x if x.ndim else x.item() for name, x in fields.items()
  })  # fmt: skip
