"""Small reports with made-up numbers, for the tests of what is written."""

from pdl_jax.report.layout import (
  ByCount,
  Column,
  Curves,
  Entry,
  Frontier,
  HeatMap,
  Line,
  Part,
  Report,
  Row,
)
from pdl_jax.report.statistics import Difference

ODD = r'100 % a_b & {c} #1 $x^2$ ~\alpha \" | <b>*d*</b> `e` [f](g) "h" --i é'
ALPHA, EPSILON = 'loss.alpha', 'loss.epsilon'
FIGURES = (
  Line(ALPHA, ('ppl', 'distinct')),
  Frontier('ppl', 'distinct'),
  ByCount(),
  HeatMap(ALPHA, EPSILON, 'ppl'),
  Curves(),
)


_TOKENS = {'0': 12, '1': 345, '2-9': 6789}


def columns():
  return (
    Column(
      key='ppl', label='Perplexity', better='lower', digits=2, unit='tokens',
      reference=None, definition='exp(nats a token)', over_documents=True,
    ),
    Column(
      key='distinct', label='Distinct-1', better='reference', digits=3,
      unit='texts', reference=0.448, definition='types', over_documents=False,
    ),
  )


def entry(values=(), **fields):
  """Values from seed 0 on; None for a seed that was not measured."""
  by_seed = {seed: v for seed, v in enumerate(values) if v is not None}
  return Entry(by_seed, **fields)


def row(label, ppl=(), distinct=(), **fields):
  """A system; its entries are values by seed, or an `Entry`."""
  entries = {
    key: found if isinstance(found, Entry) else entry(found)
    for key, found in (('ppl', ppl), ('distinct', distinct))
  }
  usual = {
    'state': 'done', 'note': '', 'seeds': (0, 1, 2), 'settings': {},
    'is_baseline': False, 'chosen': False, 'nats_by_count': {}, 'by_count': {},
    'curves': {},
  }  # fmt: skip
  return Row(label=label, entries=entries, **(usual | fields))


def part(rows, **fields):
  usual = {
    'name': 'dialogue', 'title': 'Dialogue', 'columns': columns(),
    'documents': 96, 'groups': 96, 'split': 'chitchat/test',
    'notes': ('Seeds are paired.',), 'tokens_by_count': _TOKENS,
  }  # fmt: skip
  return Part(rows=tuple(rows), **(usual | fields))


def report(*parts, figures=FIGURES):
  return Report('choose', 'Which alpha?', 'run it', parts, figures)


def baseline(**fields):
  return row(
    'cross-entropy', (15.0, 16.0, 17.0), (0.40, 0.41, 0.42),
    is_baseline=True, **fields,
  )  # fmt: skip


def table_part():
  """Every kind of cell that a table can have."""
  far = Difference(-1.0, -1.5, -0.0001)
  twin = Difference(0.0, identical=True)
  return part([
    baseline(),
    row(
      'alpha 0.25',
      entry(
        (14.0, 15.0, 16.0), difference=Difference(-1.0, -1.5, -0.0001, 1.0),
        best=True,
      ),
      entry(
        (0.43, 0.44, 0.45), difference=Difference(-0.0302, p=0.0004),
        best=True, alone=True,
      ),
      chosen=True,
      note='chosen on validation',
    ),
    row(
      'alpha 0.5',
      entry((14.5, 15.5), difference=far),
      entry((0.4,), difference=Difference(None)),
      state='partly',
      note='seed 2 missing',
    ),
    row('twin', entry((15.0, 16.0, 17.0), difference=twin)),
    row('alpha 1', state='diverged', note='loss above 100 at step 3'),
  ])  # fmt: skip


def figure_part(**fields):
  """Two settings in a grid with holes, a loss without them, and curves."""
  rows = [baseline(nats_by_count=_nats(0.0), curves=_curves(3.0))]
  for alpha in (0.25, 0.5, 1.0):
    for epsilon in (1.0, 10.0):
      if (alpha, epsilon) == (0.5, 10.0):
        continue
      settings = {ALPHA: alpha, EPSILON: epsilon}
      label = f'alpha {alpha:g}, epsilon {epsilon:g}'
      if (alpha, epsilon) == (0.5, 1.0):
        rows.append(row(label, settings=settings, state='diverged'))
        continue
      center = 15 - alpha + epsilon / 10
      rows.append(row(
        label,
        entry(
          (center - 0.2, center, center + 0.5),
          difference=Difference(center - 16.0),
        ),
        (0.4 + alpha / 20, 0.41 + alpha / 20, 0.43 + alpha / 20),
        settings=settings,
        nats_by_count=_nats(-alpha),
        curves=_curves(3.0 + alpha),
      ))  # fmt: skip
  rows.append(row('focal', (16.0, 16.5, 17.0), (0.39, 0.40, 0.41)))
  rows.append(row(
    'before', (90.0,), (0.1,), seeds=(0,), nats_by_count=_nats(4.0)
  ))  # fmt: skip
  return part(rows, **fields)


def empty_part(**fields):
  missing = {'state': 'missing', 'note': 'not run'}
  rows = [row('cross-entropy', is_baseline=True, **missing)]
  rows += [
    row(f'alpha {a}', settings={ALPHA: a, EPSILON: 1.0}, **missing)
    for a in (0.25, 0.5)
  ]
  return part(rows, **fields)


def _nats(shift):
  return {
    bucket: {seed: 5.0 - i + shift + 0.1 * seed for seed in range(3)}
    for i, bucket in enumerate(('0', '1', '2-9'))
  }


def _curves(end):
  return {
    seed: tuple((10 * i, end + 2.0 ** -i + 0.01 * seed) for i in range(4))
    for seed in range(3)
  }
