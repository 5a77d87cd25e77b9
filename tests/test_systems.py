import math

import numpy as np
import pytest

from pdl_jax.errors import DataError
from pdl_jax.evaluate.registry import f1, perplexity, ratio
from pdl_jax.report.bootstrap import hierarchical_bootstrap, paired_bootstrap
from pdl_jax.report.systems import System, item_sums

SUMS = np.arange(12.0).reshape(2, 3, 2)


def make(name='pdl', seeds=(0, 1), documents=('a', 'b', 'c'), sums=SUMS):
  return System(name, seeds, documents, sums)


def changed(value, index=(1, 2, 0)):
  sums = SUMS.copy()
  sums[index] = value
  return sums


def test_metrics_of_sums():
  sums = np.array([[6.0, 4.0, 8.0], [0.0, 3.0, 5.0]])
  assert ratio(sums).tolist() == [1.5, 0]
  assert perplexity(sums) == pytest.approx([math.exp(1.5), 1])
  assert f1(sums).tolist() == [1.0, 0]


def test_sums_of_items_have_their_mean_as_ratio():
  values_SxD = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
  assert ratio(item_sums(values_SxD).sum(axis=1)).tolist() == [3, 1]


def test_seeds_and_documents_are_sorted_with_their_numbers():
  system = make(seeds=(7, 3), documents=('b', 'c', 'a'))
  assert (system.seeds, system.documents) == ((3, 7), ('a', 'b', 'c'))
  assert system.sums_SxDxK.tolist() == [
    [SUMS[s, d].tolist() for d in (2, 0, 1)] for s in (1, 0)
  ]


def test_the_numbers_are_a_copy():
  sums = SUMS.copy()
  system = make(sums=sums)
  sums[0, 0, 0] = 99
  assert system.sums_SxDxK[0, 0, 0] == SUMS[0, 0, 0]


@pytest.mark.parametrize(
  ('options', 'told'),
  [
    ({'seeds': (0, 1, 2)}, r'\(2, 3, 2\) for 3 seeds and 3 documents'),
    ({'documents': ('a', 'b')}, '2 seeds and 2 documents'),
    ({'sums': SUMS[..., 0]}, r'shape \(2, 3\)'),
    ({'seeds': (), 'sums': SUMS[:0]}, '0 seeds and 3 documents'),
    ({'documents': (), 'sums': SUMS[:, :0]}, '2 seeds and 0 documents'),
    ({'sums': SUMS[..., :0]}, r'\(2, 3, 0\)'),
  ],
)
def test_shapes_that_do_not_fit_are_refused(options, told):
  with pytest.raises(DataError, match=f"system 'pdl': .*{told}"):
    make(**options)


def test_what_is_there_twice_is_refused():
  with pytest.raises(DataError, match="'pdl': seed 4 is there 2 times"):
    make(seeds=(4, 4))
  with pytest.raises(DataError, match="'pdl': document 'b' is there 2 times"):
    make(documents=('b', 'a', 'b'))


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_no_number_is_refused_with_its_place(bad):
  with pytest.raises(
    DataError,
    match=f"'pdl': statistic 0 of document 'a' with seed 7 is {bad}; 1 of 12",
  ):
    make(seeds=(3, 7), documents=('c', 'b', 'a'), sums=changed(bad))


def test_other_documents_or_statistics_are_refused():
  other = make('ce', documents=('a', 'b', 'x'))
  told = r"'pdl' and 'ce' .* \(3 and 3, 2 not shared\): 'c' is only in 'pdl'"
  with pytest.raises(DataError, match=told):
    paired_bootstrap(make(), other, ratio, seed=0)
  with pytest.raises(DataError, match=told):
    hierarchical_bootstrap(
      make(), other, ratio, seed=0, paired_seeds=True, stretch_seeds=True
    )
  with pytest.raises(DataError, match='have 2 and 1 statistics a document'):
    paired_bootstrap(make(), make('ce', sums=SUMS[..., :1]), ratio, seed=0)
