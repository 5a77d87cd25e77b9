"""The chat template of a pretrained model (Jinja2), and prompts made by it."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pdl_jax.errors import DataError

# What stands for the text of a turn while a template is rendered: characters
# for private use, which no template looks for.
_OPEN, _CLOSE = '\ue000', '\ue001'
_MARK = re.compile(f'{_OPEN}([0-9]+){_CLOSE}')
Turns = Sequence[tuple[str, str]]


def mark(number: int) -> str:
  """What stands for the text of a turn."""
  return f'{_OPEN}{number}{_CLOSE}'


class ChatTemplate:
  """A template, compiled; it sees no clock, so that prompts stay the same.

  Attributes:
    source: the template.
    name: where it comes from, for errors.
  """

  def __init__(self, source: str, tokens: Mapping[str, str], name: str):
    """Args: tokens: by the names templates know: bos_token, eos_token."""
    self.source, self.name, self._tokens = source, name, dict(tokens)
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _refuse
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as error:
      raise DataError(
        f'{name}: the chat template is broken ({error})'
      ) from None
    self._render = lru_cache(None)(self._render_marks)

  def render(self, messages: Turns, *, opens: bool) -> str:
    """The text of (role, content) messages.

    Args:
      messages: system, user and assistant.
      opens: whether the opening of an answer stands at the end.

    Raises:
      jinja2.TemplateError: the template refuses these roles.
    """
    turns = [{'role': role, 'content': text} for role, text in messages]
    return self._template.render(
      messages=turns, add_generation_prompt=opens, **self._tokens
    )

  def with_marks(self, instruction: str, roles: tuple[str, ...]) -> str | None:
    """A prompt whose contents are marks; None if the template refuses roles.

    Where a template takes no system turn, the instruction stands before the
    first turn.
    """
    return self._render(instruction, roles)

  def after_answer(self) -> str:
    """What stands behind the text of an answer."""
    turns = [('user', mark(0)), ('assistant', mark(1))]
    try:
      return self.render(turns, opens=False).rpartition(mark(1))[2]
    except jinja2.TemplateError as error:
      raise DataError(
        f'{self.name}: the chat template refuses a question and its answer '
        f'({error})'
      ) from None

  def _render_marks(
    self, instruction: str, roles: tuple[str, ...]
  ) -> str | None:
    turns = [(role, mark(i)) for i, role in enumerate(roles)]
    first = (roles[0], f'{instruction}\n\n{mark(0)}')
    for messages in ([('system', instruction), *turns], [first, *turns[1:]]):
      try:
        text = self.render(messages, opens=True)
      except jinja2.TemplateError:
        continue
      found = [int(number) for number in _MARK.findall(text)]
      if instruction in text and found == list(range(len(roles))):
        return text
    return None


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
  return json.dumps(value, ensure_ascii=False, indent=indent)


def runs(text: str, specials: Sequence[str]) -> list[str]:
  """A rendered text cut at its control tokens, which stand alone."""
  if not specials:
    return [text]
  longest_first = sorted(specials, key=len, reverse=True)
  pattern = '|'.join(re.escape(token) for token in longest_first)
  return [run for run in re.split(f'({pattern})', text) if run]


def filled(run: str, contents: Sequence[str]) -> tuple[str, dict[int, slice]]:
  """A run with contents in the place of marks, and where each stands."""
  made, places, end = '', {}, 0
  for found in _MARK.finditer(run):
    made += run[end : found.start()]
    number = int(found[1])
    places[number] = slice(len(made), len(made) + len(contents[number]))
    made += contents[number]
    end = found.end()
  return made + run[end:], places
