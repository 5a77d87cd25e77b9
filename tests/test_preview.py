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
from pdl_jax import preview
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.evaluate import likelihood
from pdl_jax.losses import LOSSES, LossTables
from pdl_jax.losses.frequency import FrequencyTable, effective_sample_size
from pdl_jax.losses.settings import LossSettings
from pdl_jax.preview import pieces, plot, scale
from pdl_jax.run import loss_tables
from pdl_jax.run.loss_tables import Frequencies

CONFIG = json.loads(base.get_config().loss.to_json())
SETTINGS = LossSettings.from_config(CONFIG)
ODD = 'a <script>alert(1)</script> & "quotes"\n\tb\x1b[31m [red]\u202e'
SCRIPTS = 'مرحبا بالعالم, 日本語のテキスト, हिन्दी, 👩‍👩‍👧, naïve\u0301'


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


def tables_of(table, tokenizer, loss):
  frequencies = Frequencies(table, table)
  return loss_tables.make_tables(loss, frequencies, tokenizer.special_ids)


def example(tokenizer, text, name='one'):
  (ids,) = tokenizer.encode([text])
  return preview.PreviewExample(name, text, [*ids, tokenizer.end_of_turn])


def make(table, tokenizer, texts=('the small text',), **changes):
  loss = dataclasses.replace(SETTINGS, **changes)
  examples = [example(tokenizer, text) for text in texts]
  tables = tables_of(table, tokenizer, loss)
  return preview.collect(loss, tables, table, tokenizer, examples)


def terminal(made, **options):
  file = io.StringIO()
  options = {'width': 60, '_environ': {}, **options}
  preview.print_terminal(made, Console(file=file, **options))
  return file.getvalue()


class Page(HTMLParser):
  """The tags of a page, the texts of its tokens, and their titles."""

  def __init__(self, html):
    super().__init__()
    self.tags, self.tokens, self.titles, self._open = [], [], [], ''
    self.feed(html[html.index('<h2>Examples') :])

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self._open = dict(attrs).get('title', '')
    if self._open:
      self.tokens.append('')
      self.titles.append(self._open)

  def handle_endtag(self, tag):
    self._open = ''

  def handle_data(self, data):
    if self._open:
      self.tokens[-1] += data


# --- what is computed --------------------------------------------------------


def test_alpha_zero_weighs_all_tokens_alike(table, tokenizer):
  made = make(table, tokenizer, alpha=0.0)
  shown = [t for e in made.examples for t in e.tokens]
  assert shown
  for token in (*shown, *made.heaviest, *made.lightest):
    assert (token.value, token.level) == (1.0, 0)
  assert made.distribution[:5] == (1.0, 1.0, 1.0, 1.0, 1.0)
  for bucket in made.buckets:
    assert bucket.weight_share == bucket.token_share


@pytest.mark.parametrize('name', ['power_law', 'face', 'inverse_frequency'])
def test_shares_are_those_of_single_tokens(table, tokenizer, name):
  made = make(table, tokenizer, name=name, alpha=0.7)
  loss = dataclasses.replace(SETTINGS, name=name, alpha=0.7)
  weights_V = np.asarray(tables_of(table, tokenizer, loss).weights_V, float)
  limits = [*likelihood._BUCKET_STARTS, np.inf]
  assert sum(b.token_share for b in made.buckets) == pytest.approx(1)
  assert sum(b.weight_share for b in made.buckets) == pytest.approx(1)
  assert sum(b.types for b in made.buckets) == tokenizer.vocab_size
  running = np.repeat(np.arange(tokenizer.vocab_size), table.counts_V)
  for bucket, low, high in zip(
    made.buckets, limits[:-1], limits[1:], strict=True
  ):
    counts = table.counts_V[running]
    inside = (low <= counts) & (counts < high)
    assert bucket.token_share == pytest.approx(inside.mean())
    mass = weights_V[running][inside]
    total = weights_V[running].sum()
    assert bucket.weight_share == pytest.approx(mass.sum() / total)
    if inside.any():
      assert bucket.mean == pytest.approx(mass.mean())
    else:
      assert bucket.mean is None


def test_distribution(table, tokenizer):
  made, counts_V = make(table, tokenizer), table.counts_V
  weights_V = np.asarray(tables_of(table, tokenizer, SETTINGS).weights_V)
  found, seen = made.distribution, np.sort(weights_V[counts_V > 0])
  assert (found.low, found.high) == (seen[0], seen[-1])
  assert found.middle == pytest.approx(np.median(seen))
  assert found.mean == pytest.approx(1)
  assert found.effective_share == pytest.approx(
    effective_sample_size(counts_V, weights_V)
  )
  unseen = weights_V[counts_V == 0]
  assert found.unseen == unseen.size > 0
  assert found.unseen_value == pytest.approx(np.median(unseen))
  assert (made.tokens, made.types) == (counts_V.sum(), seen.size)


def test_tokens_carry_id_count_rank_and_weight(table, tokenizer):
  made, counts_V = make(table, tokenizer), table.counts_V
  weights_V = np.asarray(tables_of(table, tokenizer, SETTINGS).weights_V)
  for token in (*made.examples[0].tokens, *made.heaviest, *made.lightest):
    count, number = counts_V[token.id], token.id
    assert (token.count, token.value) == (count, weights_V[number])
    assert token.special == (number in tokenizer.special_ids)
    ahead = (counts_V > count) | (
      (counts_V == count) & (np.arange(counts_V.size) < number)
    )
    assert token.rank == (1 + ahead.sum() if count else None)
    if token.rank:
      assert made.values_R[token.rank - 1] == weights_V[number]
  assert made.values_R.size == made.types
  assert made.examples[0].mean == pytest.approx(
    np.mean([token.value for token in made.examples[0].tokens])
  )


def test_heaviest_and_lightest_are_counted_types(table, tokenizer):
  made = make(table, tokenizer)
  weights_V = np.asarray(tables_of(table, tokenizer, SETTINGS).weights_V)
  seen = np.sort(weights_V[table.counts_V > 0])
  assert [t.value for t in made.heaviest] == seen[::-1][:10].tolist()
  assert [t.value for t in made.lightest] == seen[:10].tolist()
  assert made.lightest[0].id == 30
  assert all(token.count for token in (*made.heaviest, *made.lightest))


def test_a_type_never_counted_has_no_rank(table, tokenizer):
  (token, _) = make(table, tokenizer, [tokenizer.token(31)]).examples[0].tokens
  assert (token.id, token.count, token.rank) == (31, 0, None)


def test_a_loss_by_probability_shows_no_number(table, tokenizer):
  made = make(table, tokenizer, name='focal')
  assert 'cannot be shown before the model has run' in made.notes[0]
  assert made.distribution is None and not made.heaviest + made.lightest
  for token in made.examples[0].tokens:
    assert (token.value, token.level) == (None, 0)
  for bucket in made.buckets:
    assert (bucket.weight_share, bucket.mean) == (None, None)
  assert 'weight 1' not in preview.to_html(made) + terminal(made)
  assert '<svg' not in preview.to_html(made)


def test_logit_adjustment_shows_its_bias(table, tokenizer):
  made = make(table, tokenizer, name='logit_adjustment')
  loss = dataclasses.replace(SETTINGS, name='logit_adjustment')
  bias_V = np.asarray(tables_of(table, tokenizer, loss).bias_V)
  assert made.kind == 'bias' and 'no weights' in made.notes[0]
  for token in made.examples[0].tokens:
    assert token.value == bias_V[token.id]
  # As with weights, rare types have the colour of more.
  assert made.heaviest[0].value == bias_V[table.counts_V > 0].min()
  assert made.heaviest[0].level == 4
  assert made.lightest[0].id == 30 and made.lightest[0].level < 0
  assert all(bucket.weight_share is None for bucket in made.buckets)
  assert 'bias in nats' in preview.to_html(made)


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_has_a_preview(table, tokenizer, name):
  made = make(table, tokenizer, name=name)
  spec = LOSSES[name]
  by_token = spec.terms is not None or spec.on_logits is not None
  assert (made.kind == 'none') == by_token
  own = {f'{name}.{key}' for key in SETTINGS.rivals.get(name, {})}
  assert own <= set(made.settings)
  assert ('alpha' in made.settings) == (name == 'power_law')
  assert name in terminal(made) and name in preview.to_html(made)


def test_a_schedule_is_named(table, tokenizer):
  made = make(table, tokenizer, schedule='warmup', schedule_steps=5)
  assert 'warmup' in made.notes[0] and 'full strength' in made.notes[0]
  assert made.notes[0] in preview.to_html(made)
  assert not make(table, tokenizer).notes


def test_refusals(table, tokenizer):
  other = dataclasses.replace(table, tokenizer='f' * 64, tokenizer_name='it')
  with pytest.raises(DataError, match=r'of tokenizer it \(ffffffff\)'):
    make(other, tokenizer)
  empty = dataclasses.replace(table, counts_V=table.counts_V * 0)
  with pytest.raises(DataError, match='data/train: no target token'):
    make(empty, tokenizer)
  zeros = LossTables(np.zeros(table.counts_V.size))
  with pytest.raises(ConfigError, match='tokens weight 0'):
    preview.collect(SETTINGS, zeros, table, tokenizer, [])
  far = preview.PreviewExample('x', '', [tokenizer.vocab_size])
  with pytest.raises(DataError, match='do not fit'):
    tables = tables_of(table, tokenizer, SETTINGS)
    preview.collect(SETTINGS, tables, table, tokenizer, [far])


# --- the colours -------------------------------------------------------------


@pytest.mark.parametrize('kind', scale.EDGES)
def test_levels_grow_with_distance_and_mirror(kind):
  distance = np.linspace(-6, 6, 1201)
  levels = scale.levels(distance, kind)
  assert (np.diff(levels) >= 0).all()
  np.testing.assert_array_equal(levels, -scale.levels(-distance, kind))
  assert tuple(sorted(set(levels.tolist()))) == scale.LEVELS
  assert scale.levels(np.array([-np.inf, np.inf, 0.0]), kind).tolist() == [
    -4, 4, 0,
  ]  # fmt: skip


def test_levels_begin_where_the_legend_says():
  ratios = np.array([0.1, 0.2, 0.3, 0.6, 1.0, 1.05, 1.5, 3.0, 7.0, 9.0])
  found = scale.levels(np.log(ratios), 'weight').tolist()
  assert found == [-4, -3, -2, -1, 0, 0, 1, 2, 3, 4]
  assert all(len(labels) == 9 for labels in scale.LABELS.values())


def luminance(colour):
  parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize('palette', [scale.LIGHT, scale.DARK])
def test_inks_read_and_strengths_are_in_order(palette):
  """WCAG 2: a contrast of 4.5 for text."""
  ink, grounds = luminance(palette[0]), {
    level: luminance(colour) for level, colour in palette[1].items()
  }
  assert set(grounds) == set(scale.LEVELS) - {0}
  for ground in grounds.values():
    low, high = sorted([ink, ground])
    assert (high + 0.05) / (low + 0.05) >= 4.5
  for side in (1, -1):
    away = [abs(grounds[side * n] - ink) for n in range(1, 5)]
    assert all(near > far for near, far in pairwise(away))


def test_a_weight_of_zero_is_the_lightest(table, tokenizer):
  made = make(table, tokenizer, name='face')
  assert (made.lightest[0].value, made.lightest[0].level) == (0.0, -4)
  preview.to_html(made)


def test_colour_is_relative_to_a_running_token(table, tokenizer):
  """The paper's formula, unscaled, has the colours of the scaled one."""
  plain = make(table, tokenizer, normalize='none', alpha=0.7)
  scaled = make(table, tokenizer, alpha=0.7)
  assert plain.lightest[0].level < 0 < plain.heaviest[0].level
  for ours, theirs in zip(plain.heaviest, scaled.heaviest, strict=True):
    assert ours.level == theirs.level


# --- tokens as text ----------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_bytes_of_tokens_make_the_target(table, tokenizer, text):
  (shown,) = make(table, tokenizer, [text]).examples
  joined = b''.join(t.raw for t in shown.tokens if not t.special).decode()
  assert joined == shown.target == text
  assert all(token.text.isprintable() for token in shown.tokens)


def test_parts_of_a_character_are_shown_as_bytes(table, tokenizer):
  (ids,) = tokenizer.encode(['a €'])
  assert len(ids) == 5
  cut = preview.PreviewExample('cut', '', ids[:-1])
  counts_V = np.zeros_like(table.counts_V)
  counts_V[ids] = 1, 2, 3, 4, 5
  table = dataclasses.replace(table, counts_V=counts_V)
  tables = tables_of(table, tokenizer, SETTINGS)
  made = preview.collect(SETTINGS, tables, table, tokenizer, [cut])
  (shown,) = made.examples
  assert shown.target == 'a <0xE2><0x82>'
  texts = ['a', '·', '<0xE2>', '<0x82>']
  assert [token.text for token in shown.tokens] == texts
  assert [token.text for token in made.heaviest] == [*texts, '<0xAC>']
  assert [token.text for token in made.lightest] == ['<0xAC>', *texts[::-1]]
  page, console = preview.to_html(made), terminal(made)
  assert '�' not in page + console and '<0xAC>' in console
  assert page.count('&lt;0xAC&gt;') == 2


@pytest.mark.parametrize(
  ('raw', 'text'),
  [
    (b' the', '·the'),
    (b'\n\n', '↵↵'),
    (b'\t\r', '⇥␍'),
    (b'\xe6\x97', '<0xE6><0x97>'),
    (b' \xe6', '·<0xE6>'),
    ('日本'.encode(), '日本'),
    ('\u202e\u200d\xa0'.encode(), '\\u202e\\u200d\\xa0'),
    (b'\x1b[31m\x00', '\\x1b[31m\\x00'),
    ('\u0301e'.encode(), '◌\u0301e'),
    (b'', ''),
  ],
)
def test_everything_can_be_seen(raw, text):
  assert pieces.visible(raw) == text


def test_running_text_keeps_lines_and_joiners():
  assert pieces.readable('a b\nc\x1b\u202e👩‍👧') == 'a b\nc\\x1b\\u202e👩‍👧'


# --- the page ----------------------------------------------------------------


def test_page_escapes_and_shows_every_token(table, tokenizer):
  made = make(table, tokenizer, [ODD, SCRIPTS])
  html = preview.to_html(made)
  page = Page(html)
  tokens = [t for e in made.examples for t in e.tokens]
  assert page.tokens == [token.text for token in tokens]
  assert 'script' not in page.tags
  assert '<script' not in html and '&lt;script&gt;' in html
  assert '\x1b' not in html and '\u202e' not in html
  for title, token in zip(page.titles, tokens, strict=True):
    rank = f'rank {token.rank:,}' if token.rank else 'never counted'
    assert title == (
      f'id {token.id}, count {token.count:,}, {rank}, '
      f'weight {token.value:.3g}'
    )


def test_a_token_that_is_a_tag_stays_text(table, tokenizer):
  made = with_texts(make(table, tokenizer), ['<script>', '&lt;'])
  html = preview.to_html(made)
  assert '>&lt;script&gt;</span>' in html and '>&amp;lt;</span>' in html
  assert '<script' not in html


def test_names_are_escaped_too(table, tokenizer):
  named = example(tokenizer, 'the', '<b>"&')
  tables = tables_of(table, tokenizer, SETTINGS)
  table = dataclasses.replace(table, data_name='<i>&')
  made = preview.collect(SETTINGS, tables, table, tokenizer, [named])
  html = preview.to_html(made)
  assert '&lt;b&gt;&quot;&amp;' in html and '&lt;i&gt;&amp;' in html
  assert '<b>' not in html and '<i>' not in html


def test_page_needs_nothing_else(table, tokenizer):
  html = preview.to_html(make(table, tokenizer))
  for needs in ('http:', 'https:', '//', 'src=', 'href=', 'url(', '@import'):
    assert needs not in html
  assert 'prefers-color-scheme: dark' in html
  # 270 dots and their rings among them.
  assert len(html) < 30_000


def test_same_preview_same_bytes(table, tokenizer):
  one, two = (make(table, tokenizer, [ODD, SCRIPTS]) for _ in range(2))
  assert preview.to_html(one) == preview.to_html(two)
  assert terminal(one) == terminal(two)


# --- the plot ----------------------------------------------------------------


def svg_of(made):
  return ElementTree.fromstring(plot.svg(made))


def test_rings_are_the_types_of_the_examples_and_lie_on_the_dots(
  table, tokenizer
):
  made = make(table, tokenizer, ['the small < & "text', 'the text'])
  svg = svg_of(made)
  counted = {t.id for e in made.examples for t in e.tokens if t.rank}
  rings = svg.findall('circle')
  assert len(rings) == len(counted)
  assert any('<: id' in ring.findtext('title') for ring in rings)
  (dots,) = [p.get('d') for p in svg.findall('path') if 'h0' in p.get('d')]
  places = np.array(re.findall(r'M(\d+) (\d+)h0', dots), float)
  for ring in rings:
    at = np.array([float(ring.get('cx')), float(ring.get('cy'))])
    assert np.abs(places - at).max(axis=1).min() <= 0.5
  texts = [text.text for text in svg.findall('text')]
  assert 'weight' in texts and any('rank' in text for text in texts)


def test_dots_rise_with_rank_where_weights_do(table, tokenizer):
  counts_V = table.counts_V.copy()
  counts_V[tokenizer.end_of_turn] = 0  # It weighs 1 wherever it stands.
  made = make(dataclasses.replace(table, counts_V=counts_V), tokenizer)
  (dots,) = re.findall(r'd="((?:M\d+ \d+h0)+)"', plot.svg(made))
  places = np.array(re.findall(r'M(\d+) (\d+)', dots), float)
  assert len(places) > 50
  assert (np.diff(places[:, 0]) >= 0).all()
  assert (np.diff(places[:, 1]) <= 0).all()
  assert places[:, 0].min() >= plot.LEFT
  assert places[:, 0].max() <= plot.WIDTH - plot.RIGHT


@settings(max_examples=200)
@given(
  logs=st.lists(st.floats(-20, 20), min_size=1, max_size=2), log=st.booleans()
)
def test_axes_have_a_few_ticks(logs, log):
  """Weights, and their logarithms as biases."""
  values = np.exp(logs) if log else np.array(logs)
  _, axis = plot._axes(values, 100, log)
  ticks = axis.ticks()
  assert 1 <= len(ticks) <= 12
  assert ticks == sorted(set(ticks))
  at = [axis.pixel(tick) for tick in ticks]
  assert all(plot.TOP <= y <= plot.HEIGHT - plot.BOTTOM for y in at)


def test_a_single_type_has_a_plot(table, tokenizer):
  counts_V = table.counts_V * 0
  counts_V[40] = 7
  one = dataclasses.replace(table, counts_V=counts_V)
  made = make(one, tokenizer, [tokenizer.token(40)])
  assert len(svg_of(made).findall('circle')) == 1


# --- the terminal ------------------------------------------------------------

COLOURS = {'force_terminal': True, 'color_system': 'truecolor'}
GOLDEN = """\
loss power_law reduction=weighted_mean alpha=0.25
epsilon=1.0 epsilon_policy=absolute unit=count level=token
clip=0.0 normalize=corpus_mean unseen=min_count
schedule=constant schedule_start=0 schedule_steps=0
background_weight=0.0 label_smoothing=0.0 z_loss=0.0
corpus: data/train: 258,985 target tokens of 266 types,
tokenizer small
weight of counted types: min 0.415, median 1.52, max 6.04;
mean of a running token 1
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

heaviest   id   count   rank   weight
─────────────────────────────────────
%           7       1    265     6.04
&           8       1    266     6.04
'           9       2    263     5.46
(          10       2    264     5.46
)          11       3    261     5.08
*          12       3    262     5.08
+          13       4    259     4.81
,          14       4    260     4.81
-          15       5    258     4.59
.          16       6    257     4.42

lightest      id    count   rank   weight
─────────────────────────────────────────
<             30   90,000      1    0.415
<|im_end|>     2      500    133        1
·text        272    1,849      2      1.1
·tex         271    1,836      3      1.1
·of          270    1,822      4      1.1
·the         269    1,809      5      1.1
tex          268    1,795      6      1.1
of           267    1,782      7     1.11
ex           266    1,768      8     1.11
·small       265    1,755      9     1.11

signs: · space, ↵ new line, ⇥ tab, <0xE6> a byte that is no
character by itself
below each token: its weight

one, 4 target tokens, mean weight 1.08
prompt: the small text
target: the small text
the  ·small ·text <|im_end|>
1.11 1.11   1.1   1
"""


def test_plain_terminal(table, tokenizer):
  lines = terminal(make(table, tokenizer)).splitlines()
  assert [line.rstrip() for line in lines] == GOLDEN.splitlines()


def test_lines_fit_whatever_the_script(table, tokenizer):
  made = make(table, tokenizer, [ODD, SCRIPTS, 'the small text ' * 9])
  for options in ({}, COLOURS):
    for width in (40, 81):
      text = terminal(made, width=width, **options)
      plain = re.sub(r'\x1b\[[\d;]*m', '', text)
      assert max(map(cell_len, plain.splitlines())) <= width


def test_text_cannot_steer_the_terminal(table, tokenizer):
  text = terminal(make(table, tokenizer, [ODD]))
  assert '\x1b' not in text and '\u202e' not in text
  # In the prompt and in the target.
  assert text.count('\\x1b[31m [red]\\u202e') == 2


def test_colours_take_the_place_of_numbers(table, tokenizer):
  made = make(table, tokenizer)
  coloured = terminal(made, width=200, **COLOURS)
  heavy = ';'.join(
    str(int(scale.LIGHT[1][made.heaviest[0].level][i : i + 2], 16))
    for i in (1, 3, 5)
  )
  assert f'48;2;{heavy}m' in coloured
  plain = re.sub(r'\x1b\[[\d;]*m', '', coloured)
  tokens = ''.join(token.text for token in made.examples[0].tokens)
  assert plain.splitlines()[-1] == tokens
  numbers = [f'{t.value:.3g}' for t in made.examples[0].tokens]
  for options in (
    {**COLOURS, 'no_color': True},
    {**COLOURS, '_environ': {'NO_COLOR': '1'}},
    {'force_terminal': True, 'color_system': 'standard'},
  ):
    text = terminal(made, width=200, **options)
    assert '48;2' not in text and '[107m' not in text
    assert text.splitlines()[-1].split() == numbers


def with_texts(made, texts):
  """The first example again, its tokens with other texts."""
  (shown, *_) = made.examples
  tokens = tuple(shown.tokens[0]._replace(text=text) for text in texts)
  return dataclasses.replace(made, examples=(shown._replace(tokens=tokens),))


@pytest.mark.parametrize('width', [26, 40, 1000])
def test_numbers_stand_below_their_tokens(table, tokenizer, width):
  """At any width, below wide characters too."""
  texts = ['日本語', '·a', 'longer', '文', '<0xE6>', 'x'] * 4
  made = with_texts(make(table, tokenizer), texts)
  lines = terminal(made, width=width).splitlines()
  lines = lines[lines.index('target: the small text') + 1 :]
  found = []
  for above, below in zip(lines[::2], lines[1::2], strict=True):
    for match in re.finditer(r'\S+', below):
      assert match[0] == f'{made.examples[0].tokens[0].value:.3g}'
      starts = range(len(above))
      before = [i for i in starts if cell_len(above[:i]) == match.start()]
      found.append(above[before[0] :].split()[0])
  assert found == texts


def test_a_long_prompt_is_cut_in_the_terminal_alone(table, tokenizer):
  made = make(table, tokenizer, ['x' * 700])
  made = dataclasses.replace(
    made, examples=(made.examples[0]._replace(prompt='y' * 700),)
  )
  text = terminal(made, width=1000)
  assert f'{"y" * 600}… (100 characters more)\n' in text
  assert 'y' * 700 in preview.to_html(made)
