"""A metric of one's own is one decorated function, and then like the others."""

import numpy as np
import pytest

from pdl_jax import own_files
from pdl_jax.errors import ConfigError
from pdl_jax.evaluate import Measurement, Metric, register
from pdl_jax.evaluate.registry import METRICS, SOURCES
from pdl_jax.evaluate.run import evaluate
from pdl_jax.evaluate.side_by_side import format_table
from pdl_jax.report.declare import Study, Variant
from tests.prediction_records import STOP, VOCAB, make_record

RECORDS = [
  make_record('a#0', text='who?', references=['you?']),
  make_record('a#1', text='me', references=['you?']),
  make_record('b', text='no', references=['yes']),
]


@pytest.fixture
def own():
  known, sources, seen = dict(METRICS), list(SOURCES), {*own_files._seen}

  @register(
    Metric(
      'question_rate', 'Questions (%)', 'reference', 1, 100, unit='outputs',
      definition='share in [0, 1] of outputs that end in a question mark',
      sums=('questions', 'outputs'),
      reference_sums=('reference_questions', 'outputs'),
    ),
    Metric(
      'longest', 'Longest text', unit='texts', definition='words of it',
    ),
  )  # fmt: skip
  def questions(inputs):
    texts = [record['text'] for record in inputs.records]
    return {
      'questions': [int(text.endswith('?')) for text in texts],
      'reference_questions': [
        int(record['references'][0].endswith('?')) for record in inputs.records
      ],
      'longest': Measurement(max(len(t.split()) for t in texts), len(texts)),
    }

  yield
  METRICS.clear()
  METRICS.update(known)
  SOURCES[:] = sources
  own_files._seen.intersection_update(seen)


def test_it_is_measured_shown_and_resampled(own):
  results, items = evaluate(RECORDS, np.ones(VOCAB, int), [STOP])
  found = results['question_rate']
  assert (found['value'], found['n']) == (pytest.approx(1 / 3), 3)
  assert results['reference_question_rate']['value'] == pytest.approx(2 / 3)
  # The two samples of one example are one draw.
  assert items['sums']['questions'] == [1, 0]
  assert results['longest']['value'] == 1
  table = format_table({'PDL': results})
  row = next(line for line in table.splitlines() if 'Questions' in line)
  assert [cell.strip() for cell in row.split('|')[1:-1]] == [
    'Questions (%)', 'closest to references', '33.3', '66.7'
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('result', 'words'),
  [
    ("{'long': [len(r['txt']) for r in inputs.records]}",
     "metric long of .*own.py:5: KeyError: 'txt'"),
    ('None', 'metric long of .*own.py has to return Mapping, got NoneType'),
    ("{'long': [1, 2, 3, 4]}", "'long', which long measures, has 4 numbers"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_in_a_line(own, tmp_path, result, words):
  (tmp_path / 'own.py').write_text(
    'from pdl_jax.evaluate import Metric, register\n'
    "@register(Metric('long', '', unit='', definition='', sums=('long',)))\n"
    f'def long(inputs):\n  # Here.\n  return {result}\n', 'utf-8',
  )  # fmt: skip
  own_files._execute(tmp_path / 'own.py')
  with pytest.raises(ConfigError, match=words) as error:
    evaluate(RECORDS, np.ones(VOCAB, int), [STOP])
  assert '\n' not in str(error.value)


def test_it_takes_no_name_that_is_taken(own):
  with pytest.raises(ConfigError, match="two metrics are called 'chrf'"):
    register(Metric('chrf', 'chrF', unit='', definition=''))(lambda inputs: {})


def test_a_study_names_its_metrics():
  with pytest.raises(ConfigError, match="no metric 'questions'; there are"):
    Study('a', 'A', 'configs/dialogue.py', (Variant('x'),), 'x', ('questions',))
