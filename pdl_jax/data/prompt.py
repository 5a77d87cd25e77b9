"""Encodes conversations as prompts in the format of the model."""

import re
from collections.abc import Sequence
from functools import cache

from tokenizers import Encoding

from pdl_jax.data.chat import ChatTemplate, mark
from pdl_jax.data.tasks import TURN_CLOSES, system_turn, turn_opens
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import DataError

_ENDLESS = 2**40  # ids
# In contents, lone surrogates replace the first characters of control tokens.
_HIDDEN = 0xDC00
# The white space that control tokens with `lstrip` or `rstrip` absorb.
_SPACES = ''.join(map(chr, (
  *range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
  0x202F, 0x205F, 0x3000,
)))  # fmt: skip


class PlainFormat:
  """Encodes turns in the format of `tasks`: pieces that are encoded singly."""

  def __init__(self, tokenizer: Tokenizer):
    self._template = cache(tokenizer.encode_template)
    self._tokenizer = tokenizer

  def prompt(
    self, instruction: str, turns: Sequence[str], limit: int
  ) -> list[int]:
    """Returns at most `limit` ids, of the last turn and older ones that fit.

    The last turn is answered. Only it is cut, at its end; an older one is whole
    or left out.
    """
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
    """Counts the ids of a prompt with one empty turn."""
    return len(self.prompt(instruction, [''], _ENDLESS))


class TemplateFormat:
  """Encodes a chat template's text; spells out control tokens in contents."""

  def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate):
    self._tokenizer, self._chat = tokenizer, chat
    longest_first = sorted(tokenizer.specials, key=len, reverse=True)
    # Without control tokens nothing is one.
    self._controls = re.compile('|'.join(map(re.escape, longest_first)) or '$^')
    starts = sorted({token[0] for token in longest_first})
    self._hidden = {sign: chr(_HIDDEN + i) for i, sign in enumerate(starts)}
    self._hide = str.maketrans(self._hidden)
    self._show = str.maketrans({h: sign for sign, h in self._hidden.items()})

  def prompt(
    self, instruction: str, turns: Sequence[str], limit: int
  ) -> list[int]:
    """See `PlainFormat`."""
    best = self._single(instruction, turns[-1], limit)
    for first in range(len(turns) - 2, -1, -1):
      text = self._text(instruction, turns[first:])
      # Templates may refuse a conversation that the assistant begins.
      if text is None:
        continue
      ids = _ids(self._encode(text))
      if len(ids) > limit:
        break
      best = ids
    return best

  def size(self, instruction: str) -> int:
    """Counts the larger of what an empty and a non-empty turn need."""
    empty, text = (self._question(instruction, turn) for turn in ('', 'x'))
    pieces = self._encode(text)
    rest = len(_ids(pieces)) - len(self._of_turn(instruction, text, pieces))
    return max(rest, len(_ids(self._encode(empty))))

  def _single(self, instruction: str, turn: str, limit: int) -> list[int]:
    text = self._question(instruction, turn)
    pieces = self._encode(text)
    ids = _ids(pieces)
    excess = len(ids) - limit
    if excess <= 0:
      return ids
    of_turn = self._of_turn(instruction, text, pieces)
    if of_turn and excess > len(of_turn):
      # Some ids belong to the turn and to the template.
      ids = _ids(self._encode(self._question(instruction, '')))
    elif of_turn:
      gone = set(of_turn[-excess:])
      ids = [x for i, x in enumerate(ids) if i not in gone]
    if len(ids) > limit:
      raise DataError(
        f'{self._chat.name}: the chat template makes {len(ids)} tokens of a '
        f'question, which it alters: it cannot be cut to the {limit} of '
        'data.max_prompt'
      )
    return ids

  def _of_turn(
    self, instruction: str, text: str, pieces: Sequence[tuple[int, Encoding]]
  ) -> list[int]:
    """Finds the positions of the question's own ids."""
    marks = self._chat.with_marks(instruction, _roles(1)) or ''
    before, _, after = marks.partition(mark(0))
    if not (text.startswith(before) and text.endswith(after)):
      return []
    first, last = len(before), len(text) - len(after)
    found, count = [], 0
    for begin, part in pieces:
      low, high = first - begin, last - begin
      found += [
        i for i, (start, end) in enumerate(part.offsets, count)
        if low <= start < end <= high
      ]  # fmt: skip
      count += len(part)
    return found

  def _question(self, instruction: str, turn: str) -> str:
    return self._text(instruction, [turn]) or ''

  def _text(self, instruction: str, turns: Sequence[str]) -> str | None:
    """Renders turns, control tokens in contents hidden; None if refused."""
    text = self._made(instruction, [
      self._controls.sub(lambda found: found[0].translate(self._hide), turn)
      for turn in turns
    ])  # fmt: skip
    if text is None:
      return None
    found = self._controls.findall(text)
    marks = self._chat.with_marks(instruction, _roles(len(turns)))
    # A template may add control tokens for some contents; contents may not.
    if found != self._controls.findall(marks or ''):
      hidden = self._made(
        instruction, [turn.translate(self._hide) for turn in turns]
      )
      if self._controls.findall(hidden or '') != found:
        raise DataError(
          f'{self._chat.name}: the chat template makes a control token of a '
          f'text: the prompt has {", ".join(found)}; leave that text out'
        )
    return text

  def _made(self, instruction: str, contents: Sequence[str]) -> str | None:
    roles = _roles(len(contents))
    return self._chat.prompt(
      instruction, list(zip(roles, contents, strict=True))
    )

  def _encode(self, text: str) -> list[tuple[int, Encoding]]:
    """Encodes the shown text in parts, with the start of each."""
    if not any(sign in text for sign in self._hidden.values()):
      return [(0, self._tokenizer.encode_rendered(text))]
    shown = text.translate(self._show)
    pieces, start, takes = [], 0, False
    for found in [*self._controls.finditer(text), None]:
      token = found[0] if found else ''
      stop = found.start() if found else len(text)
      left, right = self._tokenizer.strips.get(token, (False, False))
      run = shown[start:stop]
      if takes:
        start += len(run) - len(run.lstrip(_SPACES))
      run = shown[start:stop].rstrip(_SPACES) if left else shown[start:stop]
      if run:
        piece = self._tokenizer.encode_run(run, is_first=start == 0)
        pieces.append((start, piece))
      if token:
        pieces.append((stop, self._tokenizer.encode_rendered(token)))
      start, takes = stop + len(token), right
    return pieces


def make_format(tokenizer: Tokenizer) -> PlainFormat | TemplateFormat:
  """Returns the model's template, or SmolLM2's format if it has none."""
  if tokenizer.chat is None:
    return PlainFormat(tokenizer)
  return TemplateFormat(tokenizer, tokenizer.chat)


def _ids(pieces: Sequence[tuple[int, Encoding]]) -> list[int]:
  return [x for _, piece in pieces for x in piece.ids]


def _roles(count: int) -> tuple[str, ...]:
  return tuple(_role(age) for age in reversed(range(count)))


def _role(age: int) -> str:
  """Returns the speaker so many turns before the last one, the user."""
  return 'assistant' if age % 2 else 'user'
