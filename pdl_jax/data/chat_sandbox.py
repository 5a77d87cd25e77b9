"""Renders untrusted Jinja2 templates without hanging or filling the memory.

Everything a template makes (characters, list elements) is charged to a budget,
and so is each block that it executes. A rendering that exceeds its budget
fails. The budget is counted, so it is the same on every machine; a clock is the
last resort.
"""

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# The budget of a rendering, what each character of content adds to it, the cost
# of a block, what is spent between two checks, and the limit in seconds.
_BUDGET, _BY_CONTENT, _BLOCK, _ADVANCE, _SECONDS = 1_000_000, 10, 10, 1000, 5
# These can inflate their input, or are random; no published template uses them.
_NO_FILTERS = {
  'batch', 'center', 'format', 'pprint', 'random', 'round', 'slice',
  'striptags', 'sum', 'urlize', 'wordwrap', 'xmlattr',
}  # fmt: skip
_NO_METHODS = {
  'center', 'encode', 'expandtabs', 'ljust', 'rjust', 'striptags', 'to_bytes',
  'translate', 'zfill',
}  # fmt: skip
# Formats with a width of four digits, or with a width that is an argument.
_PERCENT = re.compile(r'%(\(.*\))?[^%a-zA-Z]*([0-9]{4}|\*)', re.DOTALL)
_BRACES = re.compile(r':[^}]*([0-9]{4}|\{)')
_WIDEST = 32  # columns of an indentation
# The date that templates see. With today's, as transformers gives it, a run
# could be neither repeated nor resumed.
DATE = datetime.datetime(2024, 7, 26)
_HOLDERS = (
  list, tuple, dict, type({}.keys()), type({}.values()), type({}.items())
)  # fmt: skip


class _Budget(Context):
  """The variables of one rendering, and what it may still spend."""

  _left, _budget, _until = _ADVANCE, 0, 0.0  # below 0 left, it is checked
  turns: Sequence[tuple[str, str]] = ()  # (role, content)

  def spend(self, size: float) -> None:
    """Charges a size; raises TemplateRuntimeError over the budget."""
    self._left -= size
    if self._left >= 0:
      return
    now = time.perf_counter()
    if not self._until:
      self._until = now + _SECONDS
      # A template may repeat the whole conversation at each turn.
      size = sum(len(text) for _, text in self.turns)
      self._budget = _BUDGET + _BY_CONTENT * size * (len(self.turns) + 10)
    self._budget += self._left - _ADVANCE
    self._left = _ADVANCE
    if self._budget < 0:
      raise jinja2.TemplateRuntimeError(
        'it does not end, or makes more text than a prompt can be'
      )
    if now > self._until:
      raise jinja2.TemplateRuntimeError(f'it takes over {_SECONDS} seconds')

  def held(self, value: Any) -> Any:
    """Charges everything that a value holds, and returns the value."""
    if isinstance(value, str):
      self.spend(len(value))
    elif isinstance(value, _HOLDERS):
      self.weigh(value)
    return value

  def text(self, value: Any) -> str:
    """Charges a value, and returns it as text."""
    return str(self.held(value))

  def weigh(self, *values: Any) -> int:
    """Charges everything that values hold, repetitions included."""
    total, waiting = 0, list(values)
    while waiting:
      value = waiting.pop()
      size = len(value) if isinstance(value, str) else 1
      if isinstance(value, dict):
        waiting += [*value.keys(), *value.values()]
      elif isinstance(value, _HOLDERS):
        waiting += value
      self.spend(size)
      total += size
    return total


def _charging(visit: Callable[..., None]) -> Any:
  """Charges an expression, whose value is no larger than its parts."""

  def charged(self: '_Code', node: nodes.Node, frame: Frame) -> None:
    is_value = getattr(node, 'ctx', 'load') == 'load'  # no assignment target
    self.write('context.held(' if is_value else '(')
    visit(self, node, frame)
    self.write(')')

  return charged


class _Code(CodeGenerator):
  """Compiles templates to Python that charges what it does."""

  visit_Add = _charging(CodeGenerator.visit_Add)
  visit_Concat = _charging(CodeGenerator.visit_Concat)
  visit_Dict = _charging(CodeGenerator.visit_Dict)
  visit_Filter = _charging(CodeGenerator.visit_Filter)
  visit_List = _charging(CodeGenerator.visit_List)
  visit_Tuple = _charging(CodeGenerator.visit_Tuple)

  def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
    """Charges the bodies of loops, branches and macros."""
    body = list(nodes)
    self.writeline(f'context.spend({_BLOCK + sum(map(_size, body))})')
    super().blockvisit(body, frame)

  def _output_child_pre(self, *args: Any) -> None:
    self.write('context.text(')

  def _output_child_post(self, *args: Any) -> None:
    self.write(')')


def _size(node: nodes.Node) -> int:
  """Counts the characters that a node itself puts out."""
  if not isinstance(node, nodes.Output):
    return 0
  texts = [data.data for data in node.find_all(nodes.TemplateData)]
  texts += [str(const.value) for const in node.find_all(nodes.Const)]
  return sum(map(len, texts))


class _Generation(Extension):
  """Parses {% generation %}, which marks answers for trainers."""

  tags = {'generation'}  # noqa: RUF012

  def parse(self, parser: Parser) -> nodes.Node:
    """Drops the tags."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
  """A namespace whose text does not show what it holds."""

  __repr__ = object.__repr__


class Sandbox(ImmutableSandboxedEnvironment):
  """The environment that transformers gives to chat templates."""

  code_generator_class, context_class = _Code, _Budget
  intercepted_binops = frozenset({'*', '**', '%'})

  def __init__(self):
    super().__init__(
      trim_blocks=True, lstrip_blocks=True, optimized=False,
      extensions=[_Generation, loopcontrols],
    )  # fmt: skip
    for name in _NO_FILTERS:
      del self.filters[name]
    self.filters.update(
      indent=_indent, join=_join, replace=_replace, tojson=_to_json
    )
    del self.globals['lipsum']
    self.globals.update(
      namespace=_Namespace, raise_exception=_refuse, strftime_now=DATE.strftime
    )

  def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
    """Refuses private names, and methods that inflate their input."""
    is_safe = super().is_safe_attribute(obj, attr, value)
    return is_safe and attr not in _NO_METHODS

  def call_binop(
    self, context: Context, operator: str, left: Any, right: Any
  ) -> Any:
    """Charges the result, in advance if it can be far larger."""
    assert isinstance(context, _Budget)
    _check_operator(context, operator, left, right)
    return context.held(self.binop_table[operator](left, right))

  def call(
    self, context: Context, called: Any, /, *args: Any, **kwargs: Any
  ) -> Any:
    """Calls a method, a macro or a function, and charges the result."""
    assert isinstance(context, _Budget)
    # The sandbox wraps the method format.
    method = getattr(called, '__wrapped__', called)
    text = getattr(method, '__self__', None)
    if isinstance(text, str):
      args = _checked(context, text, method.__name__, args, kwargs)
    return context.held(super().call(context, called, *args, **kwargs))


def rendered(
  template: jinja2.Template, variables: dict[str, Any],
  turns: Sequence[tuple[str, str]],
) -> str:  # fmt: skip
  """Renders a template; the budget grows with the turns (role, content)."""
  context = template.new_context(variables)
  assert isinstance(context, _Budget)
  context.turns = turns
  return ''.join(template.root_render_func(context))


def _check_operator(
  context: _Budget, operator: str, left: Any, right: Any
) -> None:
  if operator == '%':
    if isinstance(left, str):
      _check_format(context, _PERCENT, left, right)
  elif isinstance(left, int) and isinstance(right, int):
    bits, others = left.bit_length(), right.bit_length()
    context.spend(bits * abs(right) if operator == '**' else bits + others)
  elif operator == '*':
    for sized, count in ((left, right), (right, left)):
      if isinstance(sized, str | list | tuple) and isinstance(count, int):
        context.spend(len(sized) * abs(count))


def _check_format(
  context: _Budget, wide: re.Pattern[str], text: str, *values: Any
) -> None:
  """Charges a format, which may show all values at each of its places."""
  if wide.search(text):
    raise jinja2.TemplateRuntimeError('a format that is too wide')
  context.spend((text.count('%') + text.count('{')) * context.weigh(*values))


def _checked(
  context: _Budget, text: str, method: str, args: tuple[Any, ...],
  kwargs: Mapping[str, Any],
) -> tuple[Any, ...]:  # fmt: skip
  """Charges a method of text in advance, and returns its arguments."""
  context.spend(len(text))
  if method == 'replace' and len(args) > 1:
    context.spend(text.count(args[0]) * len(args[1]))
  elif method == 'join' and args:
    args = (list(args[0]),)
    context.spend(len(text) * len(args[0]) + context.weigh(*args))
  elif method in ('format', 'format_map'):
    _check_format(context, _BRACES, text, args, kwargs)
  return args


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _check_width(width: int | str) -> None:
  if (len(width) if isinstance(width, str) else width) > _WIDEST:
    raise jinja2.TemplateRuntimeError('an indentation that is too wide')


def _indent(
  s: str, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
  _check_width(width)
  return filters.do_indent(s, width, first, blank)


@jinja2.pass_context
def _join(context: _Budget, value: Iterable[Any], d: str = '') -> str:
  values = list(value)
  context.spend(context.weigh(values) + len(values) * len(str(d)))
  return str(d).join(map(str, values))


@jinja2.pass_context
def _replace(
  context: _Budget, s: Any, old: str, new: str, count: int | None = None
) -> str:
  text = context.text(s)
  context.spend(text.count(old) * len(new))
  return filters.do_replace(context.eval_ctx, text, old, new, count)


@jinja2.pass_context
def _to_json(
  context: _Budget, value: Any, ensure_ascii: bool = False,
  indent: int | str | None = None,
  separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
  """Writes JSON as transformers does, without HTML's escapes."""
  _check_width(indent or 0)
  encoder = json.JSONEncoder(
    ensure_ascii=ensure_ascii, indent=indent, separators=separators,
    sort_keys=sort_keys,
  )  # fmt: skip
  return ''.join(map(context.held, encoder.iterencode(value)))
