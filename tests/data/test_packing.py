"""Packing and windows: every token once, and nothing across documents."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdl_jax.data import pipeline
from pdl_jax.data.examples import Lengths, empty_example
from pdl_jax.data.packing import Documents, Packed, Windows, pack
from pdl_jax.data.tasks import TASKS
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.model.config import ModelConfig
from pdl_jax.train.step import score_step
from tests.data.test_pipeline import FakeSource
from tests.tiny_model import random_params

TASK, LENGTHS = TASKS['language_model'], Lengths(prompt=7, target=6)
WORDS = ['to', 'be', 'or', 'not', 'that', 'is', 'the', 'question']


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train([' '.join(WORDS)] * 9, 300, 'small')


@pytest.fixture(scope='module')
def source():
  rng = np.random.default_rng(0)
  sizes = [1, 40, 3, 90, 2, 17, 5, 1, 12, 28]
  return FakeSource([
    {'id': f'd{i}', 'group': f'd{i}', 'source': '',
     'target': ' '.join(rng.choice(WORDS, size))}
    for i, size in enumerate(sizes)
  ])  # fmt: skip


@pytest.fixture(scope='module')
def seen(source, tokenizer):
  return pipeline.survey(source, TASK, tokenizer, LENGTHS)


@pytest.fixture(scope='module')
def documents(source, seen, tokenizer):
  return Documents(source, seen.usable, tokenizer)


def whole(source, tokenizer):
  """Ids of each document, between two ends of text."""
  end = tokenizer.end_of_text
  texts = [source[i]['target'] for i in range(len(source))]
  return [[end, *ids, end] for ids in tokenizer.encode(texts)]


def test_survey_counts_documents_of_any_length(source, seen, tokenizer):
  ids = whole(source, tokenizer)
  assert seen.too_long == seen.empty == 0
  assert seen.sizes.tolist() == [len(document) for document in ids]
  targets = np.concatenate([document[1:] for document in ids])
  counts = np.bincount(targets, minlength=tokenizer.vocab_size)
  np.testing.assert_array_equal(seen.counts_V, counts)
  assert counts[tokenizer.end_of_text] == len(source)


def test_windows_score_every_token_once(documents, seen, source, tokenizer):
  windows = Windows(documents, seen.sizes, LENGTHS)
  targets = {i: [] for i in range(len(source))}
  for number in range(len(windows)):
    record = windows.record(number)
    name, start = record['id'].split('@')
    document = int(name[1:])
    prompt, target = windows.prompt_and_target(number)
    before = [tokenizer.end_of_text, *targets[document]]
    # In order, each after all that fits of what stands before it.
    assert int(start) == len(before) - 1
    assert prompt == before[-LENGTHS.prompt :]
    assert 1 <= len(target) <= LENGTHS.target
    assert record['source'] == '' and record['group'] == name
    assert record['target'] == tokenizer.decode(target)
    targets[document] += target
  expected = [document[1:] for document in whole(source, tokenizer)]
  assert list(targets.values()) == expected


def test_packed_rows_hold_every_prediction_once(
  documents, seen, source, tokenizer
):
  packed = Packed(documents, seen.sizes, LENGTHS)
  length, found = LENGTHS.sequence, []
  for number in range(len(packed)):
    row = packed[number]
    assert row['tokens'].shape == row['labels'].shape == (length,)
    np.testing.assert_array_equal(row['reads'], np.arange(length))
    np.testing.assert_array_equal(row['where'], row['segments'] > 0)
    for segment in range(1, row['segments'].max() + 1):
      here = row['segments'] == segment
      size = here.sum()
      np.testing.assert_array_equal(row['positions'][here], np.arange(size))
      tokens, labels = row['tokens'][here], row['labels'][here]
      # Within a piece the label of a token is the token after it.
      np.testing.assert_array_equal(tokens[1:], labels[:-1])
      found.append((*tokens.tolist(), int(labels[-1])))
  expected = []
  for ids in whole(source, tokenizer):
    starts = range(0, len(ids) - 1, length)
    expected += [tuple(ids[i : i + length + 1]) for i in starts]
  assert sorted(found) == sorted(expected)


@pytest.mark.usefixtures('quick_compile')
def test_packing_changes_no_prediction(documents, seen, tokenizer):
  """A piece in a shared row has the loss that it has alone, at the start."""
  config = ModelConfig(
    vocab_size=tokenizer.vocab_size, width=16, layers=2, heads=2, kv_heads=1,
    head_dim=8, mlp=16, context=64,
  )  # fmt: skip
  params, length = random_params(config), LENGTHS.sequence
  step = jax.jit(functools.partial(score_step, config))
  score = lambda row: step(params, {name: x[None] for name, x in row.items()})
  packed = Packed(documents, seen.sizes, LENGTHS)
  row = next(r for r in packed if r['segments'].max() > 1)
  nll = score(row)[0]
  assert nll.shape == (length,) and nll.std() > 0.1
  for segment in range(1, row['segments'].max() + 1):
    here = row['segments'] == segment
    alone = empty_example(Lengths(1, length), 0) | {'reads': np.arange(length)}
    size = here.sum()
    for name in ('tokens', 'labels'):
      alone[name][:size] = row[name][here]
    alone['positions'][:size] = np.arange(size)
    alone['segments'][:size] = alone['where'][:size] = 1
    np.testing.assert_allclose(nll[here], score(alone)[0][:size], atol=2e-5)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.data())
def test_pack(sizes, data):
  length = data.draw(st.integers(max(sizes), 25))
  rows = pack(np.array(sizes), length)
  assert sorted(piece for row in rows for piece in row) == list(
    range(len(sizes))
  )
  loads = [sum(sizes[piece] for piece in row) for row in rows]
  assert max(loads) <= length
  # First fit: no two rows could be one.
  assert all(a + b > length for a, b in itertools.pairwise(loads))


def test_batches_of_packed_rows(documents, seen):
  packed = Packed(documents, seen.sizes, LENGTHS)
  made = pipeline.train_iterator(packed, 4, 0, 0, 1)
  batch = next(made)
  assert {x.shape for x in batch.values()} == {(4, LENGTHS.sequence)}
