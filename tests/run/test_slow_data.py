"""What is kept of a data set: never another's, never a torn file's."""

import dataclasses
import json

import numpy as np
import pytest

from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Lengths
from pdl_jax.data.tasks import TASKS
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.process import user_cache
from pdl_jax.run import slow_data

TEXTS = [f'text {i} of words {"and more " * i}' for i in range(20)]
LENGTHS = Lengths(32, 32)


@pytest.fixture
def made(monkeypatch, tmp_path):
  """The data sets that were looked through, or trained on, one name a time."""
  calls = []

  def counted(name, function):
    return lambda *given: calls.append(name) or function(*given)

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(pipeline, 'survey', counted('seen', pipeline.survey))
  monkeypatch.setattr(Tokenizer, 'train', counted('bpe', Tokenizer.train))
  return calls


@pytest.fixture
def look(tmp_path):
  """Looks through a file of texts; the arguments are what may change."""

  def call(texts=TEXTS, learn=TEXTS, lengths=LENGTHS, limit=0, split='train'):
    file = tmp_path / f'{split}.jsonl'
    file.write_text('\n'.join(
      json.dumps({'id': f'{i}', 'source': text, 'target': text})
      for i, text in enumerate(texts)
    ), 'utf-8')  # fmt: skip
    source = sources.load(f'jsonl:{tmp_path}', split)
    tokenizer = slow_data.tokenizer(learn, 270, 'bpe')
    task = TASKS['summarize']
    found = slow_data.survey(source, task, tokenizer, lengths, limit)
    same(found, pipeline.survey(source, task, tokenizer, lengths, limit))
    return found

  return call


def same(a, b):
  for field in dataclasses.fields(a):
    one, other = getattr(a, field.name), getattr(b, field.name)
    assert type(one) is type(other)
    assert getattr(one, 'dtype', None) == getattr(other, 'dtype', None)
    np.testing.assert_array_equal(one, other)


# `look` compares each survey with one that is made anew, which counts too.
AGAIN, ANEW = ['seen'], ['seen', 'seen']


def test_the_second_survey_and_tokenizer_are_read(made, look):
  look()
  assert made == ['bpe', *ANEW]
  made.clear()
  look()
  assert made == AGAIN


@pytest.mark.parametrize(
  'change',
  [
    {'texts': [*TEXTS[:-1], 'another']}, {'lengths': Lengths(32, 20)},
    {'limit': 3}, {'split': 'validation'}, {'texts': TEXTS[::-1]},
  ],
)  # fmt: skip
def test_what_it_follows_from_makes_it_anew(made, look, change):
  look()
  made.clear()
  look(**change)
  assert made == ANEW


def test_another_tokenizer_makes_it_anew(made, look):
  look()
  made.clear()
  look(learn=['other letters, equally many tokens'] * 9)
  assert made == ['bpe', *ANEW]


def test_other_bytes_of_one_identity_make_it_anew(made, look, tmp_path):
  """As of a prepared text, whose version tells what it should be."""
  look()
  made.clear()
  source = sources.load(f'jsonl:{tmp_path}', 'train')
  place = tmp_path / 'train.jsonl'
  changed = place.read_text('utf-8').replace('text 7', 'text 8')
  place.write_text(changed, 'utf-8')
  other = sources.load(f'jsonl:{tmp_path}', 'train')
  source = dataclasses.replace(other, identity=source.identity)
  tokenizer = slow_data.tokenizer(TEXTS, 270, 'bpe')
  slow_data.survey(source, TASKS['summarize'], tokenizer, LENGTHS, 0)
  assert made == ['seen']


def damage(harm):
  for kind in ('surveys', 'tokenizers'):
    (path,) = user_cache(kind).iterdir()
    path.write_bytes(harm(path.read_bytes()))


@pytest.mark.parametrize(
  'harm',
  [
    lambda x: x[:-1], lambda x: b'', lambda x: x[:100],
    lambda x: x[:-40] + bytes([x[-40] ^ 1]) + x[-39:],
  ],
)  # fmt: skip
def test_a_torn_or_altered_file_is_made_again(made, look, harm):
  look()
  made.clear()
  damage(harm)
  look()
  assert made == ['bpe', *ANEW]
  made.clear()
  look()
  assert made == AGAIN


def test_a_file_under_the_name_of_another_is_made_again(made, look):
  look()
  look(limit=3)
  one, other = user_cache('surveys').iterdir()
  one.write_bytes(other.read_bytes())
  made.clear()
  look()
  look(limit=3)
  assert made == ANEW + AGAIN


def test_other_code_makes_it_anew(made, look, monkeypatch):
  look()
  made.clear()
  monkeypatch.setattr('pdl_jax.storage.cache.code', lambda: 'other')
  look()
  assert made == ['bpe', *ANEW]


def test_without_a_folder_everything_works(made, look, tmp_path):
  (tmp_path / 'home').write_text('no folder', 'utf-8')
  look()
  look()
  assert made == ['bpe', *ANEW, 'bpe', *ANEW]
