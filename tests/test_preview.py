import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from configs import base
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate import likelihood
from pdl_jax.losses import LOSSES, LossTables
from pdl_jax.losses.frequency import FrequencyTable
from pdl_jax.losses.settings import LossSettings
from pdl_jax.preview import collect, show
from pdl_jax.run import loss_tables
from pdl_jax.run.loss_tables import Frequencies

SETTINGS = LossSettings.from_config(
  json.loads(base.get_config().loss.to_json())
)
ODD = (
  'a <script>alert(1)</script> & "quotes" href="#1"\n\tb'
  '\x1b[31m [red] [/] :cat:\u202e'
)
SCRIPTS = 'مرحبا بالعالم, 日本語のテキスト, हिन्दी, 👩‍👩‍👧, naïve\u0301'
COLOURS = {'force_terminal': True, 'color_system': 'truecolor'}


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(['the small text of the small'] * 9, 280, 'small')


@pytest.fixture(scope='module')
def table(tokenizer):
  counts_V = np.arange(tokenizer.vocab_size) ** 2 // 40
  counts_V[[tokenizer.end_of_turn, 30, 31]] = 500, 90_000, 0
  return FrequencyTable(
    counts_V, tokenizer.fingerprint, tokenizer.name, 'd' * 64, 'data', 'train'
  )


def tables_of(table, tokenizer, **changes):
  loss = dataclasses.replace(SETTINGS, **changes)
  frequencies = Frequencies(table, table)
  return loss_tables.make_tables(loss, frequencies, tokenizer.special_ids)


def weights_of(table, tokenizer, **changes):
  tables = tables_of(table, tokenizer, **changes)
  return np.asarray(tables.weights_V, np.float64)


def make(table, tokenizer, texts=('the small text',), label='one', **changes):
  """A preview of which each text is a prompt and a target."""
  examples = [
    collect.PreviewExample(label, text, [*ids, tokenizer.end_of_turn])
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True)
  ]
  loss = dataclasses.replace(SETTINGS, **changes)
  tables = tables_of(table, tokenizer, **changes)
  return collect.collect(loss, tables, table, tokenizer, examples)


def with_tokens(made, raws):
  """The first example again, its first token under other names."""
  (example, (token, *_)), *_ = made.examples
  tokens = [token._replace(raw=raw) for raw in raws]
  return dataclasses.replace(made, examples=[(example, tokens)])


def shown(made):
  return [token for _, tokens in made.examples for token in tokens]


def named(made):
  return [token for tokens in made.extremes.values() for token in tokens]


def texts(tokens):
  return [show.visible(token.raw) for token in tokens]


def columns(made):
  """Cells of the table by count, below their headers."""
  return {name: cells for name, *cells in zip(*made.buckets, strict=True)}


def terminal(made, **options):
  file = io.StringIO()
  options = {'width': 60, '_environ': {}, **options}
  show.print_terminal(made, Console(file=file, **options))
  return file.getvalue()


def plain(text):
  return re.sub(r'\x1b\[[\d;]*m', '', text)


class Page(HTMLParser):
  """The texts of the tokens of a page, with their titles."""

  def __init__(self, html):
    super().__init__()
    self.tokens, self._title = [], ''
    self.feed(html)

  def handle_starttag(self, tag, attrs):
    self._title = dict(attrs)['title'] if tag == 'a' else ''

  def handle_endtag(self, tag):
    self._title = ''

  def handle_data(self, data):
    if self._title:
      self.tokens.append((self._title, data))


def test_alpha_zero_weighs_all_tokens_alike(table, tokenizer):
  made = make(table, tokenizer, alpha=0.0)
  assert len(shown(made)) == 4 and len(named(made)) == 20
  for token in (*shown(made), *named(made)):
    assert (token.value, token.level) == (1.0, 0)
  # Equals stand in the order of their ids.
  first = np.flatnonzero(table.counts_V)[:10].tolist()
  assert [token.id for token in named(made)] == first + first
  found = columns(made)
  assert found['share of weight'] == found['share of tokens']
  assert 'min 1, median 1, max 1; mean per token occurrence 1' in made.lines[1]
  assert made.lines[2] == 'effective sample size: 100.0% of the tokens'


@pytest.mark.parametrize('name', ['power_law', 'face', 'inverse_frequency'])
def test_shares_are_those_of_single_tokens(table, tokenizer, name):
  found = columns(make(table, tokenizer, name=name, alpha=0.7))
  weights_V = weights_of(table, tokenizer, name=name, alpha=0.7)
  ids = np.repeat(np.arange(tokenizer.vocab_size), table.counts_V)
  starts = np.array(likelihood._BUCKET_STARTS)
  bucket_N = np.searchsorted(starts, table.counts_V[ids], 'right') - 1
  assert sum(map(int, found['types'])) == tokenizer.vocab_size
  assert tuple(found['count in training']) == likelihood.BUCKETS
  for bucket in range(starts.size):
    inside_N = bucket_N == bucket
    mass = weights_V[ids][inside_N]
    share = mass.sum() / weights_V[ids].sum()
    assert found['share of tokens'][bucket] == f'{inside_N.mean():.1%}'
    assert found['share of weight'][bucket] == f'{share:.1%}'
    mean = f'{mass.mean():.3g}' if mass.size else '-'
    assert found['mean weight'][bucket] == mean


def test_tokens_carry_count_and_weight(table, tokenizer):
  made = make(table, tokenizer, ['the small', tokenizer.token(31)])
  weights_V = weights_of(table, tokenizer)
  for token in (*shown(made), *named(made)):
    assert token.count == table.counts_V[token.id]
    assert token.value == weights_V[token.id]
    assert token.special == (token.id in tokenizer.special_ids)
  assert shown(made)[-2].count == 0
  seen_T = np.flatnonzero(table.counts_V)
  np.testing.assert_array_equal(made.counts_T, table.counts_V[seen_T])
  np.testing.assert_array_equal(made.values_T, weights_V[seen_T])
  # The heaviest and the lightest are counted types.
  seen = np.sort(weights_V[seen_T])
  values = {k: [t.value for t in v] for k, v in made.extremes.items()}
  assert values == {
    'heaviest': seen[::-1][:10].tolist(), 'lightest': seen[:10].tolist()
  }  # fmt: skip
  assert all(token.count for token in named(made))


def test_a_loss_by_probability_shows_frequencies_alone(table, tokenizer):
  made = make(table, tokenizer, name='focal')
  assert 'cannot be shown before the model has run' in made.lines[0]
  assert len(made.lines) == 2 and not made.extremes
  assert [*columns(made)] == ['count in training', 'types', 'share of tokens']
  page, text = show.to_html(made), terminal(made, **COLOURS)
  assert ', mean' not in text and '<svg' not in page
  assert ', weight' not in page and 'light-dark' not in page
  counts = [f'{token.count:,}' for token in shown(made)]
  assert text.splitlines()[-1].split() == counts


def test_logit_adjustment_shows_its_bias(table, tokenizer):
  made = make(table, tokenizer, name='logit_adjustment')
  bias_V = np.asarray(
    tables_of(table, tokenizer, name='logit_adjustment').bias_V
  )
  assert 'no weights' in made.lines[0] and 'nats' in made.lines[2]
  assert [t.value for t in shown(made)] == [bias_V[t.id] for t in shown(made)]
  # As with weights, rare types have the colour of more.
  lowest, highest = made.extremes['lowest bias'], made.extremes['highest bias']
  assert lowest[0].value == bias_V[table.counts_V > 0].min()
  assert lowest[0].level == 4
  assert highest[0].id == 30 and highest[0].level < 0
  assert 'share of weight' not in columns(made)
  assert 'bias in nats' in show.to_html(made)
  legend = ' '.join(plain(terminal(made, width=500, **COLOURS)).split())
  assert 'from: +4 +2 +1 +0.1 near it -0.1 -1 -2 -4' in legend


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_has_a_preview(table, tokenizer, name):
  made = make(table, tokenizer, name=name)
  spec = LOSSES[name]
  by_token = spec.terms is not None or spec.on_logits is not None
  assert (made.kind == 'none') == by_token
  for key in spec.settings:
    assert f' {name}.{key}=' in made.title
  assert (' alpha=' in made.title) == (name == 'power_law')
  assert f'loss {name}' in terminal(made) and name in show.to_html(made)


def test_a_schedule_is_named_and_weights_of_zero_are_refused(table, tokenizer):
  made = make(table, tokenizer, schedule='warmup', schedule_steps=5)
  assert 'warmup' in made.lines[0] and 'full strength' in made.lines[0]
  zeros = LossTables(np.zeros(table.counts_V.size))
  with pytest.raises(ConfigError, match='258985 counted tokens weight 0'):
    collect.collect(SETTINGS, zeros, table, tokenizer, [])


def test_levels_begin_where_the_legend_says():
  ratios = np.array([0, 0.1, 0.2, 0.3, 0.6, 1, 1.05, 1.5, 3, 7, 9])
  heavier = collect._heavier(2 * ratios, 2.0, 'weight')
  found = collect._levels(heavier, 'weight').tolist()
  assert found == [-4, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4]
  above = np.array([5, 3, 1.5, 0.5, 0.05, 0, -0.5, -1.5, -3, -5])
  heavier = collect._heavier(above - 7, -7.0, 'bias')
  found = collect._levels(heavier, 'bias').tolist()
  assert found == [-4, -3, -2, -1, 0, 0, 1, 2, 3, 4]


def luminance(colour):
  parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
  ]
  return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize('mode', [0, 1])
def test_inks_read_and_strengths_are_in_order(mode):
  """WCAG 2: a contrast of 4.5 for text."""
  ink = luminance(show.INK[mode])
  grounds = {k: luminance(both[mode]) for k, both in show.GROUNDS.items()}
  for ground in grounds.values():
    low, high = sorted([ink, ground])
    assert (high + 0.05) / (low + 0.05) >= 4.5
  for side in (1, -1):
    away = [abs(grounds[side * n] - ink) for n in range(1, 5)]
    assert all(near > far for near, far in pairwise(away))


def test_a_weight_of_zero_is_the_lightest(table, tokenizer):
  made = make(table, tokenizer, [tokenizer.token(30)], name='face')
  (lightest, *_) = made.extremes['lightest']
  assert (lightest.id, lightest.value, lightest.level) == (30, 0.0, -4)
  # It has no place on the logarithmic axis: the only ring is the end of turn.
  svg = svg_of(made)
  assert len(svg.findall('.//circle')) == 1
  lowest = made.values_T[made.values_T > 0].min()
  assert svg.findall('text')[5].text == f'{lowest:.3g}'


def test_colour_is_relative_to_a_running_token(table, tokenizer):
  """The paper's formula, unscaled, has the colours of the scaled one."""
  paper = named(make(table, tokenizer, normalize='none', alpha=0.7))
  scaled = named(make(table, tokenizer, alpha=0.7))
  assert [token.level for token in paper] == [token.level for token in scaled]
  assert paper[0].level > 0 > paper[10].level


@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_bytes_of_tokens_make_the_target(table, tokenizer, text):
  tokens = shown(make(table, tokenizer, [text]))
  assert b''.join(t.raw for t in tokens if not t.special).decode() == text
  assert all(map(str.isprintable, texts(tokens)))


def test_parts_of_a_character_are_shown_as_bytes(table, tokenizer):
  (ids,) = tokenizer.encode(['a €'])
  cut = collect.PreviewExample('cut', '', ids[:-1])
  tables = tables_of(table, tokenizer)
  made = collect.collect(SETTINGS, tables, table, tokenizer, [cut])
  assert texts(shown(made)) == ['a', '·', '<0xE2>', '<0x82>']
  assert 'target: a <0xE2><0x82>\n' in terminal(made)
  page = show.to_html(made)
  assert 'target: a &lt;0xE2&gt;&lt;0x82&gt;\n' in page and '�' not in page


@pytest.mark.parametrize(
  ('raw', 'text'),
  [
    (b' the', '·the'),
    (b'\n\n', '↵↵'),
    (b'\t\r', '⇥␍'),
    (b' \xe6', '·<0xE6>'),
    ('日本'.encode(), '日本'),
    ('\u202e\u200d\xa0'.encode(), '\\u202e\\u200d\\xa0'),
    (b'\x1b[31m\x00', '\\x1b[31m\\x00'),
    ('\u0301e'.encode(), '◌\u0301e'),
    (b'', ''),
  ],
)
def test_everything_can_be_seen(raw, text):
  assert show.visible(raw) == text
  # Counts of a mix of tables are no whole numbers.
  assert list(map(show._count, (1234.0, 2.5))) == ['1,234', '2.5']


def test_page_and_terminal_show_every_token_escaped(table, tokenizer):
  made = make(table, tokenizer, [ODD, SCRIPTS], label='<b>"&')
  html, tokens = show.to_html(made), [*named(made), *shown(made)]
  assert Page(html).tokens == [
    (f'id {t.id}, count {t.count:,}, weight {t.value:.3g}', text)
    for t, text in zip(tokens, texts(tokens), strict=True)
  ]
  assert '&lt;script&gt;' in html and '&lt;b&gt;&quot;&amp;, ' in html
  assert ' href=&quot;#1&quot;' in html  # What is not ours is not renamed.
  assert '\x1b' not in html and '\u202e' not in html
  assert '\\x1b[31m [red] [/] :cat:\\u202e' in html
  text = terminal(make(table, tokenizer, [ODD]))
  assert '\x1b' not in text and '\u202e' not in text
  # In the prompt and in the target.
  assert text.count('\\x1b[31m [red] [/] :cat:\\u202e') == 2


def test_page_is_light_and_dark_and_needs_nothing_else(table, tokenizer):
  html = show.to_html(make(table, tokenizer))
  for needs in ('http:', 'https:', '//', 'src=', 'href=', 'url(', '@import'):
    assert needs not in html
  assert 'color-scheme: light dark;' in html
  light, dark = show.GROUNDS[2]
  assert f'background-color: light-dark({light}, {dark})' in html
  assert re.search(r'[^(]#111111', html) is None
  assert len(html) < 30_000


def test_same_preview_same_bytes(table, tokenizer, monkeypatch):
  one = show.to_html(make(table, tokenizer, [ODD, SCRIPTS]))
  monkeypatch.setenv('NO_COLOR', '1')
  monkeypatch.setenv('TERM', 'dumb')
  monkeypatch.setenv('COLUMNS', '20')
  assert show.to_html(make(table, tokenizer, [ODD, SCRIPTS])) == one


def svg_of(made):
  svg = re.search('<svg.*</svg>', show.to_html(made), re.DOTALL)
  return ElementTree.fromstring(svg[0])


def dots_of(svg):
  (dots,) = [p.get('d') for p in svg.iter('path') if 'h0' in p.get('d')]
  return np.array(re.findall(r'M([\d.]+) ([\d.]+)h0', dots), float)


def test_rings_are_the_types_of_the_examples_and_lie_on_the_dots(
  table, tokenizer
):
  made = make(table, tokenizer, ['the small < & "text', 'the text'])
  svg = svg_of(made)
  rings = svg.findall('.//circle')
  assert len(rings) == len({token.id for token in shown(made) if token.count})
  dots = {tuple(place) for place in dots_of(svg).tolist()}
  for ring in rings:
    assert (float(ring.get('cx')), float(ring.get('cy'))) in dots
  titles = [ring.findtext('{*}title') for ring in rings]
  assert '<: id 30, count 90,000, weight 0.415' in titles
  labels = [text.text for text in svg.findall('text')]
  assert labels == [
    '1', '17', '300', '5,196', '90,000',
    '0.415', '0.811', '1.58', '3.09', '6.04', 'count in training', 'weight',
  ]  # fmt: skip


def test_dots_follow_the_weights(table, tokenizer):
  """The power law is a line on two logarithmic axes."""
  counts_V = table.counts_V.copy()
  counts_V[tokenizer.end_of_turn] = 0  # It weighs 1 wherever it stands.
  large = dataclasses.replace(table, counts_V=counts_V)
  places = dots_of(svg_of(make(large, tokenizer, epsilon=0.0)))
  assert len(places) == np.unique(counts_V).size - 1
  slopes = np.polyfit(places[:, 0], places[:, 1], 1, full=True)
  assert slopes[0][0] > 0 and slopes[1] / len(places) < 0.01
  assert places.min() >= 12 and places[:, 0].max() <= 708


@pytest.mark.parametrize('name', ['power_law', 'logit_adjustment'])
def test_a_single_type_has_a_plot(table, tokenizer, name):
  counts_V = table.counts_V * 0
  counts_V[40] = 7
  one = dataclasses.replace(table, counts_V=counts_V)
  made = make(one, tokenizer, [tokenizer.token(40)], name=name)
  assert dots_of(svg_of(made)).tolist() == [[389.0, 151.0]]


GOLDEN = """\
loss power_law reduction=weighted_mean alpha=0.25
epsilon=1.0 epsilon_policy=absolute unit=count level=token
clip=0.0 normalize=corpus_mean unseen=min_count
schedule=constant schedule_start=0 schedule_steps=0
background_weight=0.0 label_smoothing=0.0 z_loss=0.0
corpus: data/train: 258,985 target tokens of 266 types,
tokenizer small
weight of counted types: min 0.415, median 1.52, max 6.04;
mean per token occurrence 1
effective sample size: 81.5% of the tokens
never counted: 7 types, median weight 6.04

count in                 share of     share of
training      types        tokens       weight   mean weight
────────────────────────────────────────────────────────────
0                 7          0.0%         0.0%             -
1                 2          0.0%         0.0%          6.04
2                 2          0.0%         0.0%          5.46
3                 2          0.0%         0.0%          5.08
4                 2          0.0%         0.0%          4.81
5-9               5          0.0%         0.1%          4.26
10-99            42          0.8%         2.0%          2.63
100-999         137         24.9%        37.1%          1.49
1000+            74         74.3%        60.7%         0.817

heaviest   id   count   weight
──────────────────────────────
%           7       1     6.04

lightest   id    count   weight
───────────────────────────────
<          30   90,000    0.415

signs: · space, ↵ new line, ⇥ tab, <0xE6> a byte that is no
character by itself
below each token: its weight

one, 4 target tokens, mean weight 1.08
prompt: the small text
target: the small text
the  ·small ·text <|im_end|>
1.11 1.11   1.1   1
"""


def test_plain_terminal(table, tokenizer, monkeypatch):
  monkeypatch.setattr(collect, 'EXTREMES', 1)
  lines = terminal(make(table, tokenizer)).splitlines()
  assert [line.rstrip() for line in lines] == GOLDEN.splitlines()


def test_lines_fit_whatever_the_script(table, tokenizer):
  made = make(table, tokenizer, [ODD, SCRIPTS, 'the small text ' * 9])
  for options in ({}, COLOURS):
    for width in (40, 81):
      text = plain(terminal(made, width=width, **options))
      assert max(map(cell_len, text.splitlines())) <= width


def test_colours_take_the_place_of_numbers(table, tokenizer):
  made = make(table, tokenizer)
  text = terminal(made, width=200, **COLOURS)
  ground = show.GROUNDS[made.extremes['heaviest'][0].level][0]
  red, green, blue = (int(ground[i : i + 2], 16) for i in (1, 3, 5))
  assert f'48;2;{red};{green};{blue}m' in text
  assert plain(text).splitlines()[-1].split() == texts(shown(made))
  assert '\x1b]8' not in text  # The links of the page.
  assert '\x1b[3m<|im_end|>\x1b[0m' in text
  legend = 'from: ÷8 ÷4 ÷2 ÷1.1 near it ×1.1 ×2 ×4 ×8'
  assert legend in ' '.join(plain(text).split())
  numbers = [f'{token.value:.3g}' for token in shown(made)]
  for options in (
    {**COLOURS, 'no_color': True},
    {**COLOURS, '_environ': {'NO_COLOR': '1'}},
    {'force_terminal': True, 'color_system': 'standard'},
  ):
    text = terminal(made, width=200, **options)
    assert '48;2' not in text and '[107m' not in text
    assert text.splitlines()[-1].split() == numbers


@pytest.mark.parametrize('width', [26, 1000])
def test_numbers_stand_below_their_tokens(table, tokenizer, width):
  """At any width, below wide characters too."""
  names = ['日本語', '·a', 'longer', '文', '<0xE6>', 'x'] * 4
  made = with_tokens(make(table, tokenizer), [n.encode() for n in names])
  lines = show._numbered(shown(made), 'weight', width).splitlines()
  assert max(map(cell_len, lines)) <= width
  found = []
  for above, below in zip(lines[::2], lines[1::2], strict=True):
    for match in re.finditer(r'\S+', below):
      assert match[0] == f'{shown(made)[0].value:.3g}'
      starts = range(len(above))
      before = [i for i in starts if cell_len(above[:i]) == match.start()]
      found.append(above[before[0] :].split()[0])
  assert found == names


@pytest.mark.parametrize('options', [{}, COLOURS])
def test_lines_of_a_target_stay_lines(table, tokenizer, options):
  made = with_tokens(make(table, tokenizer), [b'a', b'.\n', b'b'])
  lines = plain(terminal(made, **options)).splitlines()
  rows = [line.split() for line in lines[-4:] if '1.11' not in line]
  assert rows[-2:] == [['a', '.↵'], ['b']]


def test_a_long_prompt_is_cut_in_the_terminal_alone(table, tokenizer):
  made = make(table, tokenizer, ['y' * 700])
  text = terminal(made, width=1000)
  assert f'prompt: {"y" * 600}… (100 characters more)\n' in text
  assert f'prompt: {"y" * 700}\n' in show.to_html(made)
