"""From records to tables: closed forms, identities, and what is refused."""

import copy
import math

import numpy as np
import pytest

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.report import tables
from pdl_jax.report.compare import make_report
from pdl_jax.report.declare import Experiment, Study, Variant

METRICS = (
  'perplexity',
  'rare_mass_10',
  'chrf',
)
DEFINITIONS = {
  'aa': {key: {'definition': f'of {key}'} for key in METRICS}
}
DOCUMENTS = 30


def study(**changes):
  return Study(**{
    'name': 'talk', 'title': 'Talk', 'config': 'configs/dialogue.py',
    'variants': (Variant('CE'), Variant('PDL', {'loss.alpha': 0.5})),
    'baseline': 'CE', 'metrics': METRICS, 'seeds': (0, 1, 2), 'before': '',
    **changes,
  })  # fmt: skip


def record(row, seed, nats=2.0, rare=0.2, distinct=0.5, **changes):
  random = np.random.default_rng([seed, int(1000 * nats)])
  nats_D = nats + 0.1 * random.standard_normal(DOCUMENTS)
  generated = [10] * DOCUMENTS
  rare_D = random.binomial(10, rare, DOCUMENTS).tolist()
  return {
    'study': 'talk', 'row': row, 'seed': seed, 'hash': f'{row}{seed}',
    'predictions': 'after', 'overrides': {}, 'state': 'done', 'commit': 'c' * 9,
    'dirty': False, 'split': 'chitchat/test', 'examples': 'ee',
    'tokenizer': 'tt', 'definitions': 'aa',
    'metrics': {
      'perplexity': math.exp(float(nats_D.mean())),
      'rare_mass_10': sum(rare_D) / sum(generated),
      'reference_rare_mass_10': 0.3, 'chrf': distinct,
    },
    'nats_by_count': {'0': nats + 2, '1000+': nats - 1},
    'tokens_by_count': {'0': 7, '1000+': 70},
    'curve': [[10, nats + 1], [20, nats]],
    'groups': list(range(DOCUMENTS)),
    'items': {
      'nats': nats_D.tolist(), 'tokens': [1] * DOCUMENTS,
      'rare_generated': rare_D, 'generated': generated,
    },
    **changes,
  }  # fmt: skip


def records(seeds=(0, 1, 2), **pdl):
  return [record('CE', seed) for seed in seeds] + [
    record('PDL', seed, **{'nats': 1.5, **pdl}) for seed in seeds
  ]


def report(found, definitions=DEFINITIONS, **changes):
  declared = Experiment('Which?', (study(**changes),))
  return make_report('x', 'command', declared, found, definitions)


def rows(found, **changes):
  return {row.label: row for row in report(found, **changes).parts[0].rows}


def difference(found, metric='perplexity', **changes):
  """PDL minus cross-entropy."""
  return rows(found, **changes)['PDL'].entries[metric].difference


def with_values(metric, values):
  """Records whose PDL runs have these values."""
  found = records()
  for each, value in zip(found[3:], values, strict=True):
    each['metrics'][metric] = value
    if metric == 'rare_mass_10':
      each['items']['rare_generated'] = [value * 10] * DOCUMENTS
  return found


def test_values_are_those_of_the_records_scaled():
  found = records()
  made = rows(found)
  entry = made['PDL'].entries['rare_mass_10']
  assert entry.by_seed == {
    r['seed']: 100 * r['metrics']['rare_mass_10'] for r in found[3:]
  }
  values = list(entry.by_seed.values())
  assert entry.spread.mean == pytest.approx(np.mean(values))
  assert entry.spread.std == pytest.approx(np.std(values, ddof=1))
  assert made['CE'].entries['perplexity'].difference is None
  assert made['CE'].is_baseline and made['CE'].state == 'done'


def test_a_clear_difference_is_one():
  found = records()
  entry = rows(found)['PDL'].entries['perplexity']
  assert entry.difference.low < entry.difference.value
  assert entry.difference.value < entry.difference.high < 0
  assert entry.difference.value == pytest.approx(
    np.mean([
      np.exp(np.mean(b['items']['nats'])) - np.exp(np.mean(a['items']['nats']))
      for a, b in zip(found[:3], found[3:], strict=True)
    ])
  )  # fmt: skip
  assert entry.alone and entry.best


def test_p_is_left_out_where_so_few_seeds_can_show_nothing():
  """Five paired seeds cannot reach .05, six can: 2 / 2^6."""
  assert difference(records()).p is None
  for count, least in ((5, None), (6, 2 / 2**6)):
    seeds = tuple(range(count))
    # Times 3 by Holm, for as many comparisons.
    assert difference(records(seeds), seeds=seeds).p == (least and 3 * least)


def test_metrics_across_documents_have_the_interval_of_their_seeds():
  found = difference(with_values('chrf', (0.6, 0.7, 0.65)), 'chrf')
  half = 4.302652729911275 * 0.05 / math.sqrt(3)
  assert found.value == pytest.approx(0.15)
  assert found.high - found.low == pytest.approx(2 * half)


def test_closest_to_references_compares_distances():
  found = with_values('rare_mass_10', (0.31, 0.29, 0.3))
  means = [r['metrics']['rare_mass_10'] for r in found[:3]]
  assert difference(found, 'rare_mass_10').value == pytest.approx(
    -100 * abs(np.mean(means) - 0.3), abs=1e-6
  )


def test_the_same_numbers_are_called_identical():
  found = [record('CE', seed) for seed in (0, 1, 2)]
  found += [{**copy.deepcopy(r), 'row': 'PDL'} for r in found]
  entries = rows(found)['PDL'].entries
  assert all(entry.difference.identical for entry in entries.values())
  assert all(entry.difference.p is None for entry in entries.values())
  assert not any(entry.alone for entry in entries.values())


def test_one_seed_has_an_interval_over_documents_and_says_nothing_of_seeds():
  made = rows(records(seeds=(0,)), seeds=(0,))['PDL'].entries
  assert made['perplexity'].difference.high < 0
  assert made['perplexity'].spread.std is None
  assert made['chrf'].difference.low is None


def test_missing_partly_failed_and_diverged():
  found = records()
  assert rows(found[:3])['PDL'].state == 'missing'
  assert rows(found[:3])['PDL'].note == 'missing: seed 0, 1, 2'
  assert rows(found[:4])['PDL'].state == 'partly'
  failed = [
    {**found[3 + seed], 'state': state, 'error': 'error: x'}
    for seed, state in enumerate(('diverged', 'diverged', 'failed'))
  ]
  bad = [{k: v for k, v in r.items() if k != 'metrics'} for r in failed]
  assert rows([*found[:3], *bad])['PDL'].state == 'failed'
  assert rows([*found[:3], *bad[:2]])['PDL'].state == 'diverged'
  assert 'seed 0 diverged: error: x' in rows([*found[:3], *bad])['PDL'].note
  assert not rows([*found[:3], *bad])['PDL'].entries['perplexity'].by_seed


def test_seeds_that_only_one_has_are_not_compared():
  alone = [record('CE', 0), record('PDL', 0, nats=1.5)]
  assert difference(records()[:4]) == difference(alone, seeds=(0,))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'split': 'chitchat/validation'}, "differ in split: 'chitchat/test' and"),
    ({'examples': 'ff'}, 'differ in examples'),
    ({'tokenizer': 'uu'}, 'differ in tokenizer'),
    ({'definitions': 'bb'}, 'define perplexity differently'),
    ({'row': 'other'}, "the row 'other', which is not declared"),
    ({'study': 'other'}, "of the study 'other'"),
  ],
)
def test_what_cannot_stand_in_one_table_is_refused(change, message):
  found = [*records()[:-1], {**records()[-1], **change}]
  definitions = {**DEFINITIONS, 'bb': {'perplexity': {'version': 2}}}
  with pytest.raises(DataError, match=message):
    report(found, definitions)


def test_other_words_for_one_metric_are_the_same_metric():
  found = [*records()[:-1], {**records()[-1], 'definitions': 'bb'}]
  told = {'definition': 'in other words', 'unit': 'words'}
  definitions = {**DEFINITIONS, 'bb': dict.fromkeys(METRICS, told)}
  report(found, definitions)
  told['signature'] = 'package==2'
  with pytest.raises(DataError, match='define perplexity differently'):
    report(found, definitions)


def test_declarations_are_checked():
  with pytest.raises(ConfigError, match="'XE' is none of its rows: CE, PDL"):
    study(baseline='XE')
  with pytest.raises(ConfigError, match='two rows have the same label'):
    study(before='CE')


def test_before_fine_tuning_is_one_model():
  found = [{**record('before', 0, nats=3.0), 'predictions': 'before'}]
  made = rows([*found, *records()], before='before')
  assert made['before'].seeds == (0,) and made['before'].state == 'done'
  assert made['before'].entries['perplexity'].difference is None
  assert not made['before'].entries['perplexity'].best
  # The worst of a column is not tied with the best for being one model.
  assert made['PDL'].entries['perplexity'].alone


def test_the_lowest_validation_loss_is_chosen_once_all_are_there():
  assert rows(records())['PDL'].chosen
  assert not rows(records())['CE'].chosen
  assert not any(row.chosen for row in rows(records()[:-1]).values())


def test_order_of_records_changes_nothing():
  found = records()
  texts = {tables.markdown(report(each)) for each in (found, found[::-1])}
  assert len(texts) == 1


def test_groups_are_resampled_and_not_their_documents():
  def copied(copies, groups):
    found = records()
    for r in found:
      r['items'] = {name: v * copies for name, v in r['items'].items()}
      r['groups'] = groups
    assert report(found).parts[0].groups == len(set(groups))
    return difference(found)

  alone = list(range(DOCUMENTS))
  single = copied(1, alone)
  # Every document twice in its group says nothing new, alone it seems to.
  together, apart = (
    copied(2, groups) for groups in (2 * alone, list(range(2 * DOCUMENTS)))
  )
  assert together.value == pytest.approx(single.value)
  assert together.low == pytest.approx(single.low)
  assert together.high == pytest.approx(single.high)
  assert apart.high - apart.low < single.high - single.low


def with_sums(found, bucket='0'):
  """Records of a version that keeps sums by training count."""
  for each in found:
    items = each['items']
    items[f'nats of {bucket}'] = [3 * nats for nats in items['nats']]
    items[f'tokens of {bucket}'] = [2] * DOCUMENTS
  return found


def test_differences_by_count_have_intervals_over_documents():
  made = rows(with_sums(records()))
  assert made['CE'].by_count == {}
  assert list(made['PDL'].by_count) == ['0']
  found = made['PDL'].by_count['0']
  # 3 / 2 of the nats of the documents, which differ by half a nat.
  assert found.value == pytest.approx(-0.75, abs=0.1)
  assert found.low < found.value < found.high < 0
  # Older records have no such sums; one in the table is enough.
  found = records()
  for old in (found, [*with_sums(found[:5]), found[5]]):
    assert rows(old)['PDL'].by_count == {}
