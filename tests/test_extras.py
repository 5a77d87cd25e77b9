import re
import sys

import pytest

from pdl_jax.errors import ConfigError, HostError
from pdl_jax.evaluate.extras import extra_metrics
from tests.prediction_records import make_record

MAUVE = """
import types

def compute_mauve(*, p_text, q_text, featurize_model_name, device_id, verbose,
                  seed):
  assert (p_text, q_text) == (['one', 'two'], ['a', 'b', 'c'])
  assert featurize_model_name.endswith('gpt2-large')
  return types.SimpleNamespace(mauve=0.25)
"""
BERT_SCORE = """
import types

utils = types.SimpleNamespace(model2layers={'roberta-large': 17})

def score(cands, refs, *, model_type, num_layers, device):
  assert (cands, refs) == (['a', 'b'], [['one', 'two'], ['three']])
  assert model_type.endswith('roberta-large') and num_layers == 17
  return [0.0, 0.0], [0.0, 0.0], [0.5, 1.0]
"""
PACKAGES = {'mauve': 'mauve-text', 'bertscore': 'bert-score'}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  """Installs a module of one file in the place of a package."""

  def install(module, package, code):
    (tmp_path / f'{module}.py').write_text(code, 'utf-8')
    info = tmp_path / f'{package.replace("-", "_")}-9.9.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Name: {package}\nVersion: 9.9\n', 'utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)

  yield install
  for module in ('mauve', 'bert_score'):
    sys.modules.pop(module, None)


def folder(tmp_path, name):
  path = tmp_path / name
  path.mkdir()
  return path


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    (
      'mauve',
      'MAUVE was asked for, but the package mauve is not installed: pip '
      'install mauve-text torch transformers; mauve-text is GPL-3',
    ),
    (
      'bertscore',
      'BERTScore was asked for, but the package bert_score is not installed: '
      'pip install bert-score torch transformers',
    ),
  ],
)
def test_missing_package_is_one_clear_line(name, message, tmp_path):
  with pytest.raises(HostError, match=re.escape(message)) as error:
    extra_metrics([make_record()], {name: tmp_path})
  assert '\n' not in str(error.value)


def test_missing_dependency_of_a_package_is_named(stand_in, tmp_path):
  stand_in('mauve', 'mauve-text', 'import no_such_module')
  with pytest.raises(HostError, match='the package no_such_module is not'):
    extra_metrics([make_record()], {'mauve': tmp_path})


def test_missing_folder_is_named(stand_in, tmp_path):
  stand_in('mauve', 'mauve-text', MAUVE)
  stand_in('bert_score', 'bert-score', BERT_SCORE)
  for name in PACKAGES:
    with pytest.raises(HostError, match='no folder .*nowhere; download'):
      extra_metrics([make_record()], {name: tmp_path / 'nowhere'})


def test_unknown_name_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"no extra metric 'bleurt'.*mauve, "):
    extra_metrics([make_record()], {'bleurt': tmp_path})


def test_nothing_asked_for_needs_nothing():
  assert extra_metrics([make_record()], {}) == {}


def test_mauve_compares_texts_with_words(stand_in, tmp_path):
  stand_in('mauve', 'mauve-text', MAUVE)
  records = [
    make_record('1', text='a', references=['one', 'other']),
    make_record('2', text='b', references=['two']),
    make_record('3', text='c', references=['']),
    make_record('4', text=' ', references=[' ']),
  ]
  models = {'mauve': folder(tmp_path, 'gpt2-large')}
  found = extra_metrics(records, models)['mauve']
  assert (found.value, found.n, found.unit) == (0.25, 3, 'texts')
  assert found.signature == 'mauve-text==9.9 defaults, seed=25'
  assert 'gpt2-large' in found.definition
  assert extra_metrics(records[3:], models)['mauve'].value is None


def test_mauve_refuses_a_folder_that_its_package_cannot_load(
  stand_in, tmp_path, tmp_path_factory
):
  stand_in('mauve', 'mauve-text', MAUVE)
  path = folder(tmp_path_factory.mktemp('models'), 'llama')
  with pytest.raises(ConfigError, match='must have gpt2 or bert in it'):
    extra_metrics([make_record()], {'mauve': path})


def test_bertscore_is_the_mean_of_f1(stand_in, tmp_path):
  stand_in('bert_score', 'bert-score', BERT_SCORE)
  records = [
    make_record('1', text='a', references=['one', 'two']),
    make_record('2', text='b', references=['three']),
  ]
  path = folder(tmp_path, 'roberta-large')
  found = extra_metrics(records, {'bertscore': path})['bertscore_f1']
  assert (found.value, found.n) == (0.75, 2)
  assert found.signature == 'bert-score==9.9 roberta-large layer 17, no idf'


def test_bertscore_needs_a_model_with_a_known_layer(stand_in, tmp_path):
  stand_in('bert_score', 'bert-score', BERT_SCORE)
  path = folder(tmp_path, 'my-model')
  with pytest.raises(ConfigError, match="no layer for 'my-model'; name"):
    extra_metrics([make_record()], {'bertscore': path})
