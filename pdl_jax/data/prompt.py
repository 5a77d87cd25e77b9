"""Prompts of conversations as ids, in the format of the model."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from pdl_jax.data.chat import ChatTemplate, filled, runs
from pdl_jax.data.tasks import TURN_CLOSES, system_turn, turn_opens
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import DataError


class Format(Protocol):
  """Turns, the last one to be answered, as ids."""

  def prompt(
    self, instruction: str, turns: Sequence[str], limit: int
  ) -> list[int]:
    """At most `limit` ids.

    The turns that fit, the youngest first; only the last one is cut, at its
    end, an older one is whole or gone.
    """
    ...

  def size(self, instruction: str) -> int:
    """Ids of a prompt with one empty turn."""
    ...


def make_format(tokenizer: Tokenizer) -> Format:
  """The template of the model, or SmolLM2's own format where it has none."""
  if tokenizer.chat is None:
    return PlainFormat(tokenizer)
  return TemplateFormat(tokenizer, tokenizer.chat)


class PlainFormat:
  """Of `tasks`: pieces one after the other, each encoded alone."""

  def __init__(self, tokenizer: Tokenizer):
    self._template = cache(tokenizer.encode_template)
    self._tokenizer = tokenizer

  def prompt(
    self, instruction: str, turns: Sequence[str], limit: int
  ) -> list[int]:
    """See `Format`."""
    template = self._template
    system = template(system_turn(instruction))
    answer, closes = template(turn_opens('assistant')), template(TURN_CLOSES)
    left = limit - len(system) - len(answer)
    kept: list[int] = []
    for age, ids in enumerate(reversed(self._tokenizer.encode(turns))):
      opens = template(turn_opens(_role(age)))
      room = left - len(kept) - len(opens) - len(closes)
      if age and len(ids) > room:
        break
      kept = [*opens, *ids[:room], *closes, *kept]
    return [*system, *kept, *answer]

  def size(self, instruction: str) -> int:
    """See `Format`."""
    pieces = (
      system_turn(instruction), turn_opens('user'), TURN_CLOSES,
      turn_opens('assistant'),
    )  # fmt: skip
    return sum(len(self._template(piece)) for piece in pieces)


class TemplateFormat:
  """Of a chat template: the ids of the whole text.

  Contents are encoded together with what stands around them, up to the next
  control token of the template; those in a content are spelled out.
  """

  def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate):
    self._tokenizer, self._chat = tokenizer, chat

  def prompt(
    self, instruction: str, turns: Sequence[str], limit: int
  ) -> list[int]:
    """See `Format`."""
    best, _ = self._encode(self._single(instruction), turns[-1:], limit)
    for first in range(len(turns) - 2, -1, -1):
      kept = turns[first:]
      text = self._chat.with_marks(instruction, _roles(len(kept)))
      # A template may refuse a conversation that the assistant begins.
      if text is None:
        continue
      ids, is_cut = self._encode(text, kept, limit)
      if is_cut:
        break
      best = ids
    return best

  def size(self, instruction: str) -> int:
    """See `Format`."""
    ids, _ = self._encode(self._single(instruction), [''], 0)
    return len(ids)

  def _single(self, instruction: str) -> str:
    """The text with a mark for a single question."""
    text = self._chat.with_marks(instruction, _roles(1))
    if text is None:
      raise DataError(
        f'{self._chat.name}: the chat template refuses a single question, with '
        'a system turn and without'
      )
    return text

  def _encode(
    self, text: str, turns: Sequence[str], limit: int
  ) -> tuple[list[int], bool]:
    """Ids, and whether the last turn was cut to the limit."""
    ids: list[int] = []
    of_last: list[int] = []
    for run in runs(text, self._tokenizer.specials):
      if run in self._tokenizer.specials:
        ids += self._tokenizer.encode_template(run)
        continue
      whole, places = filled(run, turns)
      encoding = self._tokenizer.encode_run(whole, is_first=not ids)
      if last := places.get(len(turns) - 1):
        of_last = [
          len(ids) + i
          for i, (start, end) in enumerate(encoding.offsets)
          if start < end and last.start <= start and end <= last.stop
        ]
      ids += encoding.ids
    excess = len(ids) - limit
    gone = set(of_last[max(0, len(of_last) - excess) :] if excess > 0 else ())
    return [x for i, x in enumerate(ids) if i not in gone], bool(gone)


def _roles(count: int) -> tuple[str, ...]:
  return tuple(_role(age) for age in reversed(range(count)))


def _role(age: int) -> str:
  """Who speaks so many turns before the last one, which is the user's."""
  return 'assistant' if age % 2 else 'user'
