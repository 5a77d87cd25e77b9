"""Predictions: their order, their fields, their shapes, on any mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pdl_jax.data.examples import Lengths, padded_example
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.evaluate.inputs import validate_records
from pdl_jax.evaluate.predict import Predictor, bucket_length
from pdl_jax.generate import DecodeSettings
from pdl_jax.mesh import make_mesh
from pdl_jax.model.config import ModelConfig
from tests.tiny_model import random_params

pytestmark = pytest.mark.usefixtures('quick_compile')
TEXTS = ['one two three', 'a stitch in time saves nine', 'the cat sat here']
LENGTHS = Lengths(prompt=16, target=5)
SAMPLE = DecodeSettings(
  'sample', samples=2, temperature=2.0, seed=3, prompt_buckets=2
)  # fmt: skip


@functools.cache
def tokenizer():
  return Tokenizer.train(TEXTS, 300, 'tiny')


@functools.cache
def model():
  config = ModelConfig(
    vocab_size=tokenizer().vocab_size, width=32, layers=1, heads=8, kv_heads=8,
    head_dim=4, mlp=32, context=32,
  )  # fmt: skip
  return config, random_params(config)


class Numbered:
  """Examples whose prompts have the lengths that are asked for."""

  def __init__(self, sizes, **extra):
    self.sizes, self.lengths, self.extra = sizes, LENGTHS, extra

  def __len__(self):
    return len(self.sizes)

  def record(self, index):
    texts = {'source': f'text {index}', 'target': TEXTS[index % 3]}
    return {'id': f'r{index}', 'group': f'g{index % 2}', **texts, **self.extra}

  def prompt_and_target(self, index):
    random = np.random.default_rng(index)
    target = random.integers(0, 256, 1 + index % LENGTHS.target)
    return random.integers(0, 256, self.sizes[index]).tolist(), target.tolist()

  def __getitem__(self, index):
    return padded_example(*self.prompt_and_target(index), self.lengths, 0)


EXAMPLES = Numbered([3, 16, 7, 1, 9, 12, 4, 15, 2, 8])
ALL = np.arange(len(EXAMPLES))


def make_predictor(settings, mesh=None, batch=4):
  mesh = make_mesh((1, 1, 1), jax.devices()[:1]) if mesh is None else mesh
  return Predictor(model()[0], mesh, tokenizer(), batch, settings)


@functools.cache
def predictor():
  return make_predictor(SAMPLE)


def predict(made, numbers=ALL, examples=EXAMPLES, **more):
  return made.predict(model()[1], examples, numbers, lambda: None, **more)


def test_records():
  records = predict(predictor(), examples=Numbered(EXAMPLES.sizes, style='old'))
  validate_records(records)
  expected = [f'r{i}#{k}' for i in ALL for k in range(2)]
  assert [record['id'] for record in records] == expected
  for place, record in enumerate(records):
    number = place // 2
    prompt, target = EXAMPLES.prompt_and_target(number)
    assert record['prompt'] == tokenizer().decode(prompt, keep_special=True)
    assert record['source'] == f'text {number}'
    assert record['references'] == [TEXTS[number % 3]]
    assert record['reference_ids'] == target
    assert record['group'] == f'g{number % 2}'
    assert record['style'] == 'old'
    assert record['text'] == tokenizer().decode(record['token_ids']).strip()
    ends = (tokenizer().end_of_turn, tokenizer().end_of_text)
    stopped = record['token_ids'][-1] in ends
    assert record['finish_reason'] == ('stop' if stopped else 'length')
    assert stopped or len(record['token_ids']) == LENGTHS.target
    assert record['decode'] == SAMPLE.record(LENGTHS.target)
  pairs = zip(records[::2], records[1::2], strict=True)
  assert any(a['token_ids'] != b['token_ids'] for a, b in pairs)


def test_a_record_does_not_depend_on_what_it_is_generated_with():
  """Other mates, another batch, another bucket: the same text and loss."""
  whole = {record['id']: record for record in predict(predictor())}
  chosen = [8, 3, 5]
  few = predict(predictor(), np.asarray(chosen))
  expected = [f'r{i}#{k}' for i in chosen for k in range(2)]
  assert [record['id'] for record in few] == expected
  for record in few:
    check_same(record, whole[record['id']])


def check_same(found, expected):
  nll = 'reference_nll'
  np.testing.assert_allclose(found[nll], expected[nll], atol=1e-5)
  assert {**found, nll: 0} == {**expected, nll: 0}


def test_one_program_a_bucket_and_none_again():
  made = make_predictor(DecodeSettings(prompt_buckets=2, max_new_tokens=3))
  records = predict(made)
  first = made.throughput
  assert first.compilations == 2
  assert first.prefill_tokens == sum(EXAMPLES.sizes)
  texts = [record['token_ids'] for record in records]
  assert first.decode_tokens == sum(map(len, texts)) <= 3 * len(ALL)
  assert first.prefill_seconds > 0 and first.decode_seconds > 0
  assert [record['id'] for record in records] == [f'r{i}' for i in ALL]
  assert records[0]['decode']['max_new_tokens'] == 3
  again = predict(made, ALL[::-1])
  assert made.throughput.compilations == 0
  assert [record['token_ids'] for record in again] == texts[::-1]


def test_the_records_of_each_batch_are_handed_over():
  """What was stored before a stop need not be generated again."""
  stored, calls = [], []

  def stop_in_time():
    # Three batches to score, and two of five to generate.
    calls.append(1)
    if len(calls) > 3 + 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    predictor().predict(
      model()[1], EXAMPLES, ALL, stop_in_time, done=stored.append
    )
  assert [len(records) for records in stored] == [4, 4]
  flat = [record for records in stored for record in records]
  names = {record['id'].split('#')[0] for record in flat}
  rest = np.asarray([i for i in ALL if f'r{i}' not in names])
  flat += predict(predictor(), rest)
  whole = {record['id']: record for record in predict(predictor())}
  assert len(flat) == len(whole)
  for record in flat:
    check_same(record, whole[record['id']])


@pytest.mark.parametrize(
  'settings', [SAMPLE, DecodeSettings('beam', beams=2)],
  ids=lambda settings: settings.method,
)
def test_a_mesh_of_eight_gives_the_texts_of_one_device(settings):
  settings = dataclasses.replace(settings, prompt_buckets=1)
  alone = predict(make_predictor(settings, batch=8))
  mesh = make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    split = predict(make_predictor(settings, mesh, batch=8))
  for found, expected in zip(split, alone, strict=True):
    check_same(found, expected)


def test_nothing_to_predict():
  assert predict(predictor(), np.asarray([], int)) == []


def test_buckets_hold_their_prompts_and_are_no_more_than_asked_for():
  assert [bucket_length(size, 16, 4) for size in (1, 4, 5, 16)] == [4, 4, 8, 16]
  assert [bucket_length(size, 10, 4) for size in (0, 3, 4)] == [3, 3, 5]
  for longest in (1, 7, 64, 100):
    for buckets in (1, 3, 4, 9):
      lengths = [
        bucket_length(size, longest, buckets) for size in range(longest + 1)
      ]
      assert all(found >= size for size, found in enumerate(lengths))
      assert len(set(lengths)) <= buckets
      assert max(lengths) == longest
