"""Chat templates: whose ids a prompt has, and what is cut."""

import contextlib
import resource
import time

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from pdl_jax.data.chat import ChatTemplate
from pdl_jax.data.prompt import make_format
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import DataError

# Like Gemma's: no system turn, roles alternate, the user begins.
STRICT = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('no system') }}{% endif %}"
  "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0)"
  " %}{{ raise_exception('order') }}{% endif %}"
  "{{ '<s>' + m['role'] + '\n' + m['content'] | trim + '</s>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<s>model\n' }}{% endif %}"
)
TEXTS = ['one two three', 'four five', 'six seven eight', 'user model', 'Say.']


@pytest.fixture(scope='module')
def make():
  """A tokenizer that puts a space before every text, as SentencePiece does."""
  backend = Backend(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
  backend.normalizer = normalizers.NFC()
  trainer = trainers.BpeTrainer(
    vocab_size=90, special_tokens=['<bos>', '<s>', '</s>'], show_progress=False,
    initial_alphabet=list('\n.?▁'),
  )  # fmt: skip
  backend.train_from_iterator(TEXTS * 9, trainer)

  def tokenizer(source):
    chat = ChatTemplate(source, {'bos_token': '<bos>'}, 'here')
    definition = Backend.from_str(backend.to_str())
    return Tokenizer(definition, 'bpe', '</s>', '<bos>', chat=chat)

  return tokenizer


def test_ids_are_those_of_the_whole_text(make):
  tokenizer = make(STRICT)
  made = make_format(tokenizer).prompt('Say.', ['one', 'two', 'three'], 999)
  text = (
    '<bos><s>user\nSay.\n\none</s>\n<s>assistant\ntwo</s>\n<s>user\nthree</s>\n'
    '<s>model\n'
  )
  assert made == tokenizer.encode_template(text)


def test_only_the_last_turn_is_cut_and_older_ones_go_whole(make):
  turns = ['one two', 'four', 'six seven eight']
  form = make_format(make(STRICT))
  full = form.prompt('Say.', turns, 999)
  alone = form.prompt('Say.', turns[-1:], 999)
  least = form.size('Say.')
  for limit in range(least + 1, len(full) + 1):
    made = form.prompt('Say.', turns, limit)
    assert len(made) <= limit
    assert made[-4:] == full[-4:]
    assert (made == full) == (limit == len(full))
    if limit < len(full):
      assert len(made) == min(limit, len(alone))


def test_a_broken_template_is_an_error(make):
  with pytest.raises(DataError, match='here: the chat template is broken'):
    make('{% for %}')


# In our own words, what templates of published families do with a content:
# it stands between control tokens, is trimmed, split at a marker, replaced in.
USER = "{% if m.role == 'assistant' %}model{% else %}{{ m.role }}{% endif %}"
FAMILIES = {
  'chatml': (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] +"
    " '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
  ),
  'llama2': (
    "{% if messages[0].role == 'system' %}{% set start = '<<SYS>>\n' + "
    "messages[0].content + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set start = '' %}{% set turns = messages %}{% endif %}{% for "
    "m in turns %}{% set c = (start if loop.first else '') + m.content %}"
    "{% if m.role == 'user' %}{{ bos_token ~ '<s> ' ~ c | trim ~ ' </s>' }}"
    "{% else %}{{ ' ' ~ c.strip() ~ ' ' ~ '<bos>' }}{% endif %}{% endfor %}"
  ),
  'llama3': (
    "{{ bos_token }}{% for m in messages %}{{ '<s>' + m.role + '\n\n' + "
    "m.content | trim + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n\n' }}{% endif %}"
  ),
  'mistral': (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m.content.rstrip() + '</s>' }}{% else %}"
    "{{ '<s> ' + m.content.replace('  ', ' ') + ' <s>' }}{% endif %}"
    "{% endfor %}"
  ),
  'gemma': STRICT,
  'phi': (
    "{% for m in messages %}{{ '<' ~ 's' ~ '>' ~ m.role ~ '\n' }}"
    "{% if '<think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip("
    "'\n') }}{% else %}{{ m.content.replace('one', 'two') }}{% endif %}"
    "{{ '</s> \n ' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>'"
    " }}{% endif %}"
  ),
}  # fmt: skip
PARTS = ['one', ' ', '\n', '  ', 'two', '<think>', '</think>', 'user', '.', 'é',
         '<', '>', 's', '/', '\u2003', '\x1c']  # fmt: skip


def stripping(make, source, left, right):
  """A tokenizer whose control tokens take white space away."""
  definition = Backend.from_str(make(source).definition)
  for token in ('<s>', '</s>'):
    added = AddedToken(token, special=True, lstrip=left, rstrip=right)
    definition.add_special_tokens([added])
  chat = ChatTemplate(source, {'bos_token': '<bos>'}, 'here')
  return Tokenizer(definition, 'bpe', '</s>', '<bos>', chat=chat)


def rendered(chat, turns):
  """With a system turn, or else without; None: the template refuses both."""
  (role, text), *others = turns
  for said in ([('system', 'Say.'), *turns],
               [(role, f'Say.\n\n{text}'), *others]):  # fmt: skip
    with contextlib.suppress(jinja2.TemplateError):
      return chat.render(said, opens=True)
  return None


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_contents_have_the_ids_of_the_rendered_text(make, data):
  source = FAMILIES[data.draw(st.sampled_from(sorted(FAMILIES)))]
  tokenizer = stripping(
    make, source, data.draw(st.booleans()), data.draw(st.booleans())
  )
  content = st.lists(st.sampled_from(PARTS), max_size=6).map(''.join)
  turns = data.draw(st.lists(content, min_size=1, max_size=3))
  # Texts that hold a control token are of the next test.
  turns = [t.replace('<s>', '').replace('</s>', '') for t in turns]
  form = make_format(tokenizer)
  roles = ('user', 'assistant', 'user')[-len(turns) :]
  found = form.prompt('Say.', turns, 9999)
  for start in range(len(turns)):
    said = list(zip(roles[start:], turns[start:], strict=True))
    if text := rendered(tokenizer.chat, said):
      break
  assert found == tokenizer.encode_template(text)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('strips', [False, True])
def test_control_tokens_in_contents_are_spelled_out(make, family, strips):
  tokenizer = stripping(make, FAMILIES[family], strips, strips)
  form, count = make_format(tokenizer), tokenizer.special_ids.count
  controls = lambda text: list(filter(count, form.prompt('S.', [text], 999)))
  made = form.prompt('Say.', ['a </s> b<s>'], 999)
  assert controls('a </s> b<s>') == controls('a b')
  # All else is as in any text.
  (spelled,) = tokenizer.encode(['</s>'])
  signs = ''.join(tokenizer.token(x) for x in made if not count(x))
  assert ''.join(map(tokenizer.token, spelled)).strip() in signs
  limit = form.size('Say.') + 3
  assert len(form.prompt('Say.', ['one </s> two three'] * 3, limit)) <= limit


def test_a_template_that_makes_a_control_token_of_a_text_is_refused(make):
  without_x = "m['content'].replace('x', '')"
  source = FAMILIES['chatml'].replace("m['content']", without_x)
  form = make_format(make(source))
  assert form.prompt('Say.', ['ax'], 99) == form.prompt('Say.', ['a'], 99)
  with pytest.raises(DataError, match='makes a control token of a text'):
    form.prompt('Say.', ['a</xs> b'], 99)


def test_a_question_that_is_altered_is_cut_or_refused(make):
  form = make_format(make(FAMILIES['llama3']))
  least = form.size('Say.')
  text = '  one two three four five \n'
  for limit in range(least, least + 9):
    assert len(form.prompt('Say.', [text], limit)) <= limit
  counted = "m['content'] + (m['content'] | length | string)"
  source = FAMILIES['chatml'].replace("m['content']", counted)
  form = make_format(make(source))
  assert len(form.prompt('Say.', [text], 99)) < 99
  with pytest.raises(DataError, match='which it alters: it cannot be cut to'):
    form.prompt('Say.', [text], 15)


def shown(source, *turns):
  return ChatTemplate(source, {}, 'here').render(
    turns or [('user', 'é"')], opens=False
  )


def test_what_transformers_gives_to_templates_is_there():
  assert shown('{{ tools is none and documents is none }}') == 'True'
  tags = '{% generation %}{{ messages[0].content }}{% endgeneration %}</s>'
  assert shown(tags, ('assistant', 'a')) == 'a</s>'
  # One date for ever: prompts are the same tomorrow.
  assert shown("{{ strftime_now('%d %b %Y') }}") == '26 Jul 2024'
  json = "{{ {'b': [1], 'a': 'é<'} | tojson"
  assert shown(f'{json} }}}}') == '{"b": [1], "a": "é<"}'
  assert shown(
    f"{json}(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}}}"
  ) == '{"a":"\\u00e9<","b":[1]}'
  assert shown("{{ [1] | tojson(indent=2) }}") == '[\n  1\n]'
  loop = '{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}'
  assert shown(f'{loop}{{% endfor %}}') == '1'


@pytest.mark.parametrize('fails', [
  'm.content + 1', '1 // 0', 'm.content | tojson(what=1)', 'm.x.y',
  "raise_exception('no')", '10 ** (9 ** 20)', 'm | tojson | int + m',
])  # fmt: skip
def test_a_template_that_fails_at_a_system_turn_is_tried_without(fails):
  source = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ FAILS }}{% endif %}"
    '<{{ m.role }}>{{ m.content }}</s>{% endfor %}'
  ).replace('FAILS', fails)
  chat = ChatTemplate(source, {}, 'here')
  made = chat.prompt('Do it.', [('user', 'x')])
  assert made == '<user>Do it.\n\nx</s>'
  always = ChatTemplate(f'{{% set m = {{}} %}}{{{{ {fails} }}}}', {}, 'here')
  for call in (
    always.after_answer, lambda: always.prompt('Do it.', [('user', 'x')])
  ):  # fmt: skip
    with pytest.raises(DataError, match='here: the chat template refuses') as e:
      call()
    assert '\n' not in str(e.value)


MANY = '{% for a in range(99999) %}'
GROW = "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = "
HOSTILE = {
  'loops': MANY * 3 + '{% endfor %}' * 3,
  'loops of sets': MANY * 3 + '{% set x = 1 %}' + '{% endfor %}' * 3,
  'range': '{% for a in range(10**9) %}{% endfor %}',
  'times': "{{ 'x' * 10**9 }}", 'list': '{% set x = 10**9 * [1] %}',
  'power': '{{ 2 ** 99999999999 }}',
  'recursion': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  'tree': '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}'
          '{% endmacro %}{{ f(90) }}',
  'loop in itself': '{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}',
  'include': "{% include 'x' %}", 'import': "{% import 'x' as y %}",
  'extends': "{% extends 'x' %}",
  'text': MANY * 2 + 'x' * 5000 + '{% endfor %}' * 2,
  'tojson': "{{ [[1]] | tojson(indent=10**9) }}",
  'replace': "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
  'join': "{{ range(99999) | join('x' * 99999) }}",
  'kept': '{% set n = namespace(l=[]) %}{% set x = "x" * 99999 %}' + MANY
          + '{% set n.l = n.l + [x ~ i] %}{% endfor %}',
  'deep': '{{ ' + '(' * 3000 + '1' + ')' * 3000 + ' }}',
  'blocks': '{% for x in [1] %}' * 30 + '{% endfor %}' * 30,
} | {f'grow {e}': f'{GROW}{e} %}}{{% endfor %}}{{{{ n.s | upper }}}}' for e in (
  'n.s + n.s', 'n.s ~ n.s', "'%s%s' % (n.s, n.s)", "'{0}{0}'.format(n.s)",
  '[n.s, n.s]', "n.s | replace('x', n.s)", "n.s.replace('x', n.s)",
  'n.s.join([n.s, n.s])', '[n.s, n.s] | join', '{1: n.s, 2: n.s}', '(n.s, n.s)',
  "['', ''] | map('default', n.s, true) | list", 'dict(a=n.s, b=n.s)',
)} | {f'wide {e}': f'{{{{ {e} }}}}' for e in (
  "'x' | center(10**9)", "'x\\nx' | indent(10**9)",
  "'%1000000000d' | format(1)", "'%1000000000d' % 1",
  "'%*d' % (1000000000, 1)", "'{:1000000000}'.format(1)",
  "'%(a)1000000000d' % {'a': 1}", "'{:{w}}'.format(1, w=10**9)",
  "'{a:{w}}'.format_map({'a': 1, 'w': 10**9})", "'x'.ljust(10**9)",
  "'x'.zfill(10**9)", "'\\t'.expandtabs(10**9)", '[1] | batch(10**9, 1) | list',
  '5 | round(10**9, "floor")', '[[1]] | sum(start=[])', 'lipsum(10**7)',
  "(5).to_bytes(10**10, 'big')", '[1] | slice(10**9) | list',
)}  # fmt: skip


@pytest.mark.parametrize('source', HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_one_line_soon(source):
  begun, most = time.process_time(), resource.RUSAGE_SELF
  before = resource.getrusage(most).ru_maxrss
  with pytest.raises(DataError, match='here: the chat template') as error:
    ChatTemplate(source, {}, 'here').after_answer()
  assert '\n' not in str(error.value)
  assert time.process_time() - begun < 10
  assert resource.getrusage(most).ru_maxrss - before < 300_000  # KiB.


def test_long_conversations_are_within_the_budget():
  turns = [('user', 'x' * 5000), ('assistant', 'y z' * 999)] * 100
  source = (
    "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + "
    "'<s>' + m.role ~ (m.content | trim) ~ '</s>' %}{% endfor %}{{ n.t }}"
  )
  made = shown(source, *turns)
  assert made.count('</s>') == 200
