import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.collections import LineCollection

from pdl_jax.errors import ConfigError
from pdl_jax.report import figures, marks
from pdl_jax.report.layout import (
  ByCount,
  Curves,
  Frontier,
  HeatMap,
  Line,
  Part,
)
from pdl_jax.report.statistics import Difference
from tests import stand_in_report as stand_in

ALPHA, EPSILON = stand_in.ALPHA, stand_in.EPSILON


@pytest.fixture(scope='module')
def drawn():
  parts = stand_in.figure_part(), stand_in.empty_part(name='e')
  found = figures.draw(stand_in.report(*parts))
  assert list(found) == ['dialogue', 'e'] and not found['e']
  return found['dialogue']


def texts(svg):
  """Letters are paths, each text with itself as a comment."""
  found = re.findall(r'<!-- (.*?) -->', svg, re.DOTALL)
  return [ET.fromstring(f'<t>{text}</t>').text for text in found]


def plotted(rows, figure):
  """The axes of a figure of rows, or of a part."""
  part = rows if isinstance(rows, Part) else stand_in.part(rows)
  picture = figures.plot(part, figure)
  return picture and picture.axes[0]


def artists(ax):
  return {line.get_label(): line for line in ax.lines}


def dots(ax):
  """The points of each seed, by collection."""
  return [
    [tuple(point) for point in found.get_offsets().tolist()]
    for found in ax.collections
    if type(found).__name__ == 'PathCollection'
  ]


def said(ax):
  return [text.get_text() for text in ax.texts]


def test_a_file_for_each_figure_that_has_something_to_show(drawn):
  assert list(drawn) == [
    'dialogue_line.svg',
    'dialogue_frontier.svg',
    'dialogue_by_count.svg',
    'dialogue_heat_map.svg',
    'dialogue_curves.svg',
  ]
  for svg in drawn.values():
    root = ET.fromstring(svg)
    assert root.tag == '{http://www.w3.org/2000/svg}svg'
    # 700 pixels of 1/96 inch; the file counts points of 1/72.
    width = float(root.attrib['width'].removesuffix('pt'))
    assert width == pytest.approx(525.6)
    assert root[0].text.startswith('Dialogue: ')


def test_drawn_again_it_is_the_same_whatever_the_style_of_the_user(drawn):
  report = stand_in.report(stand_in.figure_part())
  style = {'font.size': 20, 'svg.fonttype': 'none', 'xtick.color': 'red'}
  with matplotlib.rc_context(style):
    again = figures.draw(report)['dialogue']
    assert {key: matplotlib.rcParams[key] for key in style} == style
  assert again == drawn
  for svg in drawn.values():
    assert 'dc:date' not in svg and matplotlib.__version__ not in svg


def test_everything_is_named(drawn):
  """What committed figures name is compared byte for byte."""
  found = {name: texts(svg) for name, svg in drawn.items()}
  line, frontier = found['dialogue_line.svg'], found['dialogue_frontier.svg']
  assert {'loss.epsilon 1', 'loss.epsilon 10', 'human texts'} <= set(line)
  assert {'alpha 1, epsilon 10', 'focal', 'human texts'} <= set(frontier)
  cells = found['dialogue_heat_map.svg']
  assert cells.count('missing') == 1 and cells.count('diverged') == 1
  # Of 14.65, 14.85 and 15.35.
  assert '14.95' in cells and '± 0.36' in cells
  counts = found['dialogue_by_count.svg']
  assert '2-9' in counts and 'alpha 1, epsilon 10' in counts
  # Not compared with the baseline.
  assert 'before' in frontier and 'before' not in counts


def test_names_of_several_figures_of_a_kind():
  report = stand_in.report(
    stand_in.figure_part(name='a/b c'),
    figures=(
      Line(ALPHA, ('ppl', 'distinct')),
      Line(ALPHA, ('distinct',)),
      Frontier('ppl', 'distinct', log=True),
      HeatMap(ALPHA, EPSILON, 'ppl'),
      HeatMap(ALPHA, EPSILON, 'distinct'),
    ),
  )
  drawn = figures.draw(report)['a/b c']
  assert list(drawn) == [
    'a-b-c_line_loss.alpha_ppl.svg',
    'a-b-c_line_loss.alpha_distinct.svg',
    'a-b-c_frontier.svg',
    'a-b-c_heat_map_loss.alpha_loss.epsilon_ppl.svg',
    'a-b-c_heat_map_loss.alpha_loss.epsilon_distinct.svg',
  ]
  # Logarithmic axes have plain numbers.
  numbers = texts(drawn['a-b-c_frontier.svg'])
  assert {'0.5', '20'} <= set(numbers)
  assert not any('$' in text or '\\' in text for text in numbers)
  for figure in (ByCount(), Line(ALPHA, ('ppl',))):
    report = stand_in.report(stand_in.figure_part(), figures=(figure, figure))
    with pytest.raises(ConfigError, match='2 figures of the report'):
      figures.draw(report)


def test_what_a_part_does_not_have_is_not_drawn():
  part = stand_in.figure_part()
  for figure in (
    Line('loss.gamma', ('ppl',)), Line(ALPHA, ('other',)),
    Frontier('ppl', 'other'), HeatMap(ALPHA, 'loss.gamma', 'ppl'),
    HeatMap(ALPHA, EPSILON, 'other'),
  ):  # fmt: skip
    assert figures.plot(part, figure) is None, figure


def test_signs_in_labels_are_drawn_as_they_are():
  row = stand_in.row(stand_in.ODD, (1.0, 2.0), (0.4, 0.5))
  part = stand_in.part([stand_in.baseline(), row], title=stand_in.ODD)
  svg = figures.draw(stand_in.report(part))['dialogue'][
    'dialogue_frontier.svg']
  assert ''.join(texts(svg)).count('$x^2$') == 1
  # The glyph of the dollar sign.
  assert 'id="DejaVuSans-7"' in svg
  assert ET.fromstring(svg)[0].text == f'{stand_in.ODD}: frontier'


def test_no_figure_is_kept_by_pyplot():
  """It would keep all of them open, and choose a window system."""
  for path in Path(figures.__file__).parent.glob('*.py'):
    assert 'pyplot' not in path.read_text('utf-8'), path


def test_line_has_means_bands_and_every_seed():
  part = stand_in.part([
    stand_in.baseline(),
    stand_in.row('c', (3.0, 5.0), settings={ALPHA: 1.0}),
    stand_in.row('b', state='failed', settings={ALPHA: 0.5}),
    stand_in.row('a', (1.0, 2.0), settings={ALPHA: 0.25}),
    stand_in.row('other', (9.0,), settings={}),
  ])
  ax = plotted(part, Line(ALPHA, ('distinct', 'ppl')))
  mean = artists(ax)['mean over seeds']
  assert list(mean.get_xdata()) == [0.25, 0.5, 1.0]
  assert list(mean.get_ydata())[::2] == [1.5, 4.0]
  # No line across the system that failed.
  assert math.isnan(mean.get_ydata()[1])
  assert sorted(point for points in dots(ax) for point in points) == [
    (0.25, 1.0), (0.25, 2.0), (1.0, 3.0), (1.0, 5.0)
  ]  # fmt: skip
  corners = [
    y
    for collection in ax.collections
    if type(collection).__name__ != 'PathCollection'
    for path in collection.get_paths()
    for _, y in path.vertices.tolist()
  ]
  assert max(corners) == pytest.approx(4 + math.sqrt(2))
  assert min(corners) == pytest.approx(1.5 - math.sqrt(0.5))
  assert list(artists(ax)['cross-entropy (baseline)'].get_ydata()) == [16, 16]
  assert 'human texts' not in artists(ax)


def test_the_baseline_is_part_of_a_line_where_another_system_is():
  rows = [
    stand_in.row(
      f'{a}', (a,), settings={ALPHA: a, 'loss.name': 'pdl'}, seeds=(0,)
    )
    for a in (0.25, 0.5)
  ]
  figure = Line(ALPHA, ('ppl',))
  assert 'one seed' in artists(plotted(rows, figure))
  for name, xs in (('pdl', [0.0, 0.25, 0.5]), ('plain', [0.25, 0.5])):
    zero = stand_in.baseline(settings={ALPHA: 0.0, 'loss.name': name})
    found = artists(plotted([zero, *rows], figure))
    mean = 'mean over seeds' if name == 'pdl' else 'one seed'
    assert list(found[mean].get_xdata()) == xs
    assert 'cross-entropy (baseline)' in found
  assert plotted([zero], figure) is None


@pytest.mark.parametrize('values', [
  [0.0], [0.0, 0.1, 1.0, 10.0], [0.1, 1.0, 10.0], [0.25, 0.5],
], ids=str)  # fmt: skip
def test_every_x_has_a_place(values):
  _, [ax] = marks.panels(1, 3.0)
  marks.set_x_axis(ax, values)
  low, high = ax.get_xlim()
  assert low < values[0] and values[-1] < high
  places = [float(ax.transAxes.inverted().transform(
    ax.transData.transform((x, 0.5))
  )[0]) for x in values]  # fmt: skip
  assert places == sorted(places) and places[0] > 0 and places[-1] < 1
  # Ticks that would overlap are left out.
  assert set(ax.get_xticks()) <= set(values)


def with_reference(value):
  """A part whose references have this perplexity."""
  part = stand_in.figure_part()
  column = dataclasses.replace(part.columns[0], reference=value)
  return dataclasses.replace(part, columns=(column, part.columns[1]))


def test_frontier_places_systems_and_humans():
  part = with_reference(12.0)
  ax = plotted(part, Frontier('ppl', 'distinct'))
  [star] = [line for line in ax.lines if line.get_marker() == '*']
  assert (list(star.get_xdata()), list(star.get_ydata())) == ([12], [0.448])
  points = {
    (float(x.get_xdata()[0]), float(x.get_ydata()[0]))
    for x in ax.lines
    if x.get_marker() in 's^oD' and len(x.get_xdata()) == 1
  }
  for row in part.rows:
    x, y = row.entries['ppl'].spread, row.entries['distinct'].spread
    if x is not None and y is not None:
      assert (x.mean, y.mean) in points


@pytest.mark.parametrize(
  ('reference', 'arrow'), [(1e4, '→'), (-1e4, '←'), (13.0, '')]
)
def test_human_texts_that_are_far_off_do_not_set_the_scale(reference, arrow):
  ax = plotted(with_reference(reference), Frontier('ppl', 'distinct'))
  low, high = ax.get_xlim()
  assert (low <= reference <= high) == (not arrow)
  assert said(ax) == (
    [f'human texts {reference:.3g} {arrow}'] if arrow else []
  )


def nats(*values):
  return {'0': dict(enumerate(values))}


def compared(label, *values, **fields):
  entry = stand_in.entry((1.0,), difference=Difference(0.0))
  return stand_in.row(label, entry, nats_by_count=nats(*values), **fields)


def by_count(*rows, baseline=(1.0,)):
  baseline = stand_in.baseline(nats_by_count=nats(*baseline))
  return plotted([baseline, *rows], ByCount())


def test_by_count_pairs_seeds_where_it_can():
  paired = compared('paired', 2.0, 5.0)
  more = compared('more seeds', 2.0, 5.0, 2.0)
  ax = by_count(paired, more, baseline=(1.0, 3.0))
  heights = [[y for _, y in points] for points in dots(ax)]
  assert heights == [[1.0, 2.0], [0.0, 3.0, 0.0]]
  assert list(artists(ax)['paired'].get_ydata()) == [1.5]
  # It needs a baseline and another.
  assert by_count() is None
  for rows in ([paired], [stand_in.baseline(), paired]):
    assert plotted(rows, ByCount()) is None


def test_by_count_draws_intervals_where_they_are_known():
  known = Difference(1.0, 0.25, 1.75)
  endless = Difference(1.0, float('-inf'), 1.75)
  lines = []
  for found in ({}, {'0': known}, {'0': endless}):
    ax = by_count(compared('system', 2.0, by_count=found))
    lines.append([
      segment.tolist()
      for drawn in ax.collections
      if isinstance(drawn, LineCollection)
      for segment in drawn.get_segments()
    ])
    assert ('95 % intervals' in ax.get_ylabel()) == bool(found)
  assert lines == [[], [[[0.0, 0.25], [0.0, 1.75]]], []]


@pytest.mark.parametrize(('far', 'scale'), [(2.0, 'linear'), (9.0, 'symlog')])
def test_by_count_one_that_is_far_off_does_not_hide_the_others(far, scale):
  ax = by_count(compared('near', 1.1), compared('far', far))
  assert ax.get_yscale() == scale
  low, high = ax.get_ylim()
  assert low <= 0.1 < far - 1 <= high
  shown = [text.get_text() for text in ax.get_yticklabels()]
  assert '0' in shown or scale == 'linear'


def cells(*settings):
  return [
    stand_in.row(f'{x} {y} {i}', (1.0,), settings={ALPHA: x, EPSILON: y})
    for i, (x, y) in enumerate(settings)
  ]


def test_heat_map():
  """Numbers stand before words; two systems in one cell are refused."""
  figure = HeatMap(ALPHA, EPSILON, 'ppl')
  with pytest.raises(ConfigError, match="'1.0 1.0 0' and '1.0 1.0 1' both"):
    plotted(cells((1.0, 1.0), (1.0, 1.0)), figure)
  ax = plotted(cells((10.0, 'b'), (2.0, 'a'), ('none', 'a')), figure)
  assert [t.get_text() for t in ax.get_xticklabels()] == ['2', '10', 'none']
  assert [t.get_text() for t in ax.get_yticklabels()] == ['a', 'b']
  assert said(ax).count('1.00') == 3 and said(ax).count('missing') == 3


def test_what_is_not_finite_does_not_set_the_scale():
  curves = {0: ((0, 5.0), (10, 3.0)), 1: (), 2: ((5, math.inf),)}
  ax = plotted([stand_in.row('calm', curves=curves)], Curves())
  low, high = ax.get_ylim()
  assert 2 < low < 3 and 5 < high < 6
  assert 'calm' in artists(ax)


def luminance(colour):
  red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_marks_follow_the_settings():
  part = stand_in.figure_part()
  found = {row.label: mark for row, mark in marks.marked(part)}
  assert found['cross-entropy'].colour == marks.BASELINE
  assert len({(m.colour, m.marker) for m in found.values()}) == len(part.rows)
  by_alpha = [found[f'alpha {a}, epsilon 1'] for a in ('0.25', '0.5', '1')]
  light = [luminance(mark.colour) for mark in by_alpha]
  assert light == sorted(light) and light[-1] < 200
  one, ten = found['alpha 1, epsilon 1'], found['alpha 1, epsilon 10']
  assert one.colour == ten.colour
  assert one.marker != ten.marker and one.dash != ten.dash


def test_a_scale_wants_two_numbers():
  rows = [
    stand_in.baseline(settings={ALPHA: 0.0}),
    *(
      stand_in.row(name, settings={ALPHA: 1.0, EPSILON: epsilon})
      for name, epsilon in (('a', 1.0), ('b', 10.0))
    ),
  ]
  assert marks.scale_key(stand_in.part(rows)) == EPSILON
  assert marks.scale_key(stand_in.part(rows[:2])) is None


def test_lines_are_ordered_and_named_by_what_differs():
  shared = ('loss.name', 'pdl')
  rests = [(shared, (EPSILON, 10.0)), (shared, (EPSILON, 2.0))]
  found = marks.line_styles(rests)
  assert [label for label, _ in found.values()] == [
    'loss.epsilon 2', 'loss.epsilon 10',
  ]  # fmt: skip
  colours = [mark.colour for _, mark in found.values()]
  assert colours == marks.sequential(2)
  words = marks.line_styles([(('a', 'x'),), (('a', 'y'),)])
  assert [m.colour for _, m in words.values()] == [
    marks.category(i).colour for i in range(2)
  ]


def test_a_legend_has_every_label_once_and_room_for_it():
  picture, axes = marks.panels(2, 2.0)
  for ax in axes:
    ax.plot([1], [1], label='twice')
    ax.plot([1], [1], label='a rather long name of a system ' * 6)
  before = picture.get_figheight()
  marks.add_legend(picture, axes)
  [legend] = picture.legends
  assert len(legend.get_texts()) == 2
  assert picture.get_figheight() > before
  picture.draw_without_rendering()
  box = legend.get_window_extent().transformed(picture.transFigure.inverted())
  assert box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0
