import re
from html.parser import HTMLParser

import pytest

from pdl_jax.errors import DataError
from pdl_jax.report import figures, page, wording
from pdl_jax.report.layout import Frontier, HeatMap
from tests import stand_in_report as stand_in

ALPHA, EPSILON = stand_in.ALPHA, stand_in.EPSILON
VOID = {'meta', 'br'}
SVG = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/x.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">
 <title>words: id="x" href="#x" url(#x)</title>
 <path id="x" d="M0 0"/>
 <clipPath id="y"><path d="M0 0"/></clipPath>
 <g clip-path="url(#y)" style="fill: url(#y)"><use xlink:href="#x"/></g>
</svg>
"""


class Reader(HTMLParser):
  """Checks the nesting; keeps tags, attributes and the text of each tag."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.strip():
      self.texts.append((self.open[-1] if self.open else '', data))

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def the_page(*parts, **figures):
  names = {f'{name}.svg': svg for name, svg in figures.items()}
  return page.to_html(stand_in.report(*parts), names)


def test_cells_are_those_of_the_other_formats():
  part = stand_in.table_part()
  text = the_page(part)
  reader = Reader(text)
  tables = [wording.results(part), wording.differences(part)]
  pieces = [
    piece
    for table in tables
    if table is not None
    for _, *cells in table.rows
    for cell in cells
    for piece in cell.pieces
  ]
  assert [words for tag, words in reader.texts if tag == 'span'] == pieces
  [best] = re.findall('<td class="best">(.*?)</td>', text, re.DOTALL)
  assert best.strip() == '<span>0.440 ± 0.010</span>'
  labels = [row[0].text for table in tables if table for row in table.rows]
  headings = [h for table in tables if table for h in table.headings]
  found = [words for tag, words in reader.texts if tag == 'th']
  assert sorted(found) == sorted(labels + headings)
  for said in (*wording.remarks(part), wording.results_legend(part)):
    assert said in [words for _, words in reader.texts]


def test_texts_are_escaped():
  odd = f'{stand_in.ODD}</td></style><script>'
  part = stand_in.part(
    [
      stand_in.baseline(),
      stand_in.row(odd, (1.0,), note=odd, state='partly'),
    ],
    title=odd, split=odd, notes=(odd,),
  )  # fmt: skip
  reader = Reader(the_page(part))
  assert not reader.all('script') and not reader.all('b')
  words = [words for _, words in reader.texts]
  assert words.count(odd) == 4  # title, note, and a row of each table
  assert f'{odd}: {odd}' in words


def test_the_page_needs_no_other():
  text = the_page(stand_in.table_part(), dialogue_line=SVG)
  reader = Reader(text)
  for _, attributes in reader.tags:
    assert not {'src', 'data', 'action', 'onload'} & attributes.keys()
    for name in ('href', 'xlink:href'):
      assert attributes.get(name, '#').startswith('#')
  assert '@import' not in text and 'url(http' not in text
  assert not reader.all('script') and not reader.all('link')
  assert text.count('<!DOCTYPE') == 1 and '<?xml' not in text
  assert 'prefers-color-scheme: dark' in text
  [_, viewport] = reader.all('meta')
  assert viewport['content'] == 'width=device-width, initial-scale=1'


def test_figures_share_no_id():
  text = the_page(stand_in.table_part(), dialogue_line=SVG, dialogue_other=SVG)
  reader = Reader(text)
  ids = [found['id'] for _, found in reader.tags if 'id' in found]
  assert len(ids) == len(set(ids)) == 4
  used = re.findall(r'(?<=url\(#)[\w-]+(?=\)")|(?<=href="#)[\w-]+(?="/>)', text)
  assert set(used) == set(ids) and len(used) == 6
  # What is to be read stays as it was.
  assert text.count('words: id="x" href="#x" url(#x)') == 2
  assert [svg['role'] for svg in reader.all('svg')] == ['img', 'img']


def test_drawn_figures_stand_on_one_page():
  report = stand_in.report(
    stand_in.figure_part(name='other'), stand_in.table_part(),
    figures=(HeatMap(ALPHA, EPSILON, 'ppl'), Frontier('ppl', 'distinct')),
  )  # fmt: skip
  reader = Reader(page.to_html(report, figures.draw(report)))
  assert len(reader.all('svg')) == 3
  ids = [found['id'] for _, found in reader.tags if 'id' in found]
  assert len(ids) == len(set(ids))
  used = {
    name
    for _, attributes in reader.tags
    for key, value in attributes.items()
    for name in re.findall(
      r'^#(\S+)$' if key.endswith('href') else r'url\(#(\S+)\)', value
    )
  }
  assert used and used <= set(ids)


def test_a_figure_stands_with_its_part():
  parts = [
    stand_in.part([stand_in.baseline()], name=name, title=name.upper())
    for name in ('dialogue', 'dialogue_long', 'empty')
  ]
  text = the_page(
    *parts,
    dialogue_long_line=SVG.replace('words', 'of the long one'),
    dialogue_line=SVG.replace('words', 'of the short one'),
  )
  short, long, empty = text.split('<section>')[1:]
  assert 'of the short one' in short and 'of the long one' not in short
  assert 'of the long one' in long and '<svg' not in empty


@pytest.mark.parametrize('name, svg, said', [
  ('other_line', SVG, "'other_line.svg' begins with the name of no part"),
  ('dialogue_line', 'a text', "'dialogue_line.svg' is no SVG"),
])  # fmt: skip
def test_what_is_no_figure_of_the_report(name, svg, said):
  with pytest.raises(DataError, match=re.escape(said)):
    the_page(stand_in.table_part(), **{name: svg})


def test_written_twice_is_the_same():
  first, second = (
    the_page(stand_in.table_part(), stand_in.empty_part(name='e'), e_line=SVG)
    for _ in range(2)
  )
  assert first == second
