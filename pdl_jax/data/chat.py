"""The chat template of a pretrained model (Jinja2), and prompts made by it."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import jinja2

from pdl_jax.data.chat_sandbox import Sandbox, rendered
from pdl_jax.errors import DataError

# Private-use characters mark a turn's place: no template looks for them.
_OPEN, _CLOSE = '\ue000', '\ue001'
_MARK = re.compile(f'{_OPEN}([0-9]+){_CLOSE}')
_LONGEST = 200  # characters of a foreign message in our errors
Turns = Sequence[tuple[str, str]]


def mark(number: int) -> str:
  """Returns the placeholder for the text of a turn."""
  return f'{_OPEN}{number}{_CLOSE}'


class ChatTemplate:
  """A compiled template. It sees no clock, so prompts stay the same."""

  def __init__(self, source: str, tokens: Mapping[str, str], name: str):
    """`tokens` maps what templates call bos_token, eos_token and so on."""
    self.source, self.name, self._tokens = source, name, dict(tokens)
    try:
      self._template = Sandbox().from_string(source)
    # Jinja also passes on errors of Python's compiler.
    except Exception as error:
      raise DataError(
        f'{name}: the chat template is broken ({_reason(error)})'
      ) from None
    self._form = lru_cache(None)(self._find_form)

  def render(self, messages: Turns, *, opens: bool) -> str:
    """Returns the text of messages; `opens` adds the opening of an answer."""
    turns = [{'role': role, 'content': text} for role, text in messages]
    variables = {
      'messages': turns, 'tools': None, 'documents': None,
      'add_generation_prompt': opens, **self._tokens,
    }  # fmt: skip
    try:
      return rendered(self._template, variables, messages)
    except jinja2.TemplateError:
      raise
    # A template's expression can raise anything.
    except Exception as error:
      raise jinja2.TemplateRuntimeError(_reason(error)) from None

  def with_marks(self, instruction: str, roles: tuple[str, ...]) -> str | None:
    """Returns a prompt with placeholders, or None if roles are refused."""
    _, text, _ = self._form(instruction, roles)
    return text

  def prompt(self, instruction: str, turns: Turns) -> str | None:
    """Returns a prompt, or None if the template refuses several turns."""
    has_system, text, reason = self._form(
      instruction, tuple(role for role, _ in turns)
    )
    if text is not None:
      try:
        return self.render(
          _messages(instruction, turns, has_system), opens=True
        )
      except jinja2.TemplateError as error:
        reason = _reason(error)
    if len(turns) > 1:
      return None
    raise DataError(
      f'{self.name}: the chat template refuses a single question, with a '
      f'system turn and without ({reason})'
    )

  def after_answer(self) -> str:
    """Returns the text that follows an answer."""
    turns = [('user', mark(0)), ('assistant', mark(1))]
    try:
      text = self.render(turns, opens=False)
    except jinja2.TemplateError as error:
      raise DataError(
        f'{self.name}: the chat template refuses a question and its answer '
        f'({_reason(error)})'
      ) from None
    _, _, after = text.rpartition(mark(1))
    return after if mark(1) in text else ''

  def _find_form(
    self, instruction: str, roles: tuple[str, ...]
  ) -> tuple[bool, str | None, str]:
    """Returns (takes a system turn, text with placeholders, why refused)."""
    turns = [(role, mark(i)) for i, role in enumerate(roles)]
    reason = ''
    for has_system in (True, False):
      try:
        messages = _messages(instruction, turns, has_system)
        text = self.render(messages, opens=True)
      except jinja2.TemplateError as error:
        reason = _reason(error)
        continue
      found = [int(number) for number in _MARK.findall(text)]
      if instruction in text and found == list(range(len(roles))):
        return has_system, text, ''
      reason = 'it leaves out some of what it is given, or repeats it'
    return False, None, reason


def _messages(instruction: str, turns: Turns, has_system: bool) -> Turns:
  if has_system:
    return [('system', instruction), *turns]
  (role, text), *others = turns
  return [(role, f'{instruction}\n\n{text}'), *others]


def _reason(error: Exception) -> str:
  text = ' '.join(str(error).split())[:_LONGEST]
  if isinstance(error, jinja2.TemplateError):
    return text
  return f'{type(error).__name__}: {text}'
