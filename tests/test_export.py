"""From a folder through a run to a folder: the door and its files."""

import json

import jax
import numpy as np
import pytest

from pdl_jax import export
from pdl_jax.data.hf_tokenizer import open_tokenizer
from pdl_jax.data.prompt import make_format
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model.pretrained.hf import HFModel
from tests import small


@pytest.fixture(scope='module')
def folders(quick_compile, data_dir, tmp_path_factory):
  """A run from scratch, its export, a run from that, and the export of it."""
  root = tmp_path_factory.mktemp('export')
  less = {
    'train.steps': 3, 'train.checkpoint_every': 3, 'evaluate.examples': 4,
    'evaluate.validation_examples': 4,
  }  # fmt: skip
  small.run_job(data_dir, root / 'first', **less)
  export.run(root / 'first', root / 'one')
  changes = {'model.pretrained': str(root / 'one')}
  small.run_job(data_dir, root / 'second', **less, **changes)
  export.run(root / 'second', root / 'two')
  return root


def test_the_second_run_begins_where_the_first_ended(folders):
  first, second = (
    [json.loads(x)['token_ids'] for x in file.read_text().splitlines()]
    for file in (
      folders / 'first/predictions/after.jsonl',
      folders / 'second/predictions/before.jsonl',
    )
  )
  assert first == second
  kept = json.loads((folders / 'second/model.json').read_text())
  assert len(kept['digest']) == 8 and len(kept['logits']) == 4


def test_training_changed_the_weights(folders):
  one, two = (HFModel(folders / x).params() for x in ('one', 'two'))
  assert jax.tree.structure(one) == jax.tree.structure(two)
  assert np.abs(one['embed_VxD'] - two['embed_VxD']).max() > 0


def test_the_tokenizer_and_the_format_of_prompts_go_along(folders):
  definition = (folders / 'first/tokenizer.json').read_text()
  assert (folders / 'one/tokenizer.json').read_text() == definition
  tokenizer = open_tokenizer(folders / 'one', 512)
  asked = tokenizer.chat.render([('user', ' Hm? ')], opens=True)
  assert asked == '<|im_start|>user\nHm?<|im_end|>\n<|im_start|>assistant\n'
  by_template = make_format(tokenizer).prompt('Say.', ['a b'], 99)
  tokenizer.chat = None
  assert by_template == make_format(tokenizer).prompt('Say.', ['a b'], 99)


def test_the_card_has_the_results_and_the_command(folders):
  card = (folders / 'two/README.md').read_text()
  results = json.loads((folders / 'second/results.json').read_text())
  (_, after) = results['columns'].values()
  assert f'{after["perplexity"]["value"]:.2f}' in card
  assert '--config=configs/summarize.py' in card
  assert f'--config.model.pretrained={folders / "one"}' in card


def test_generation_stops_where_the_run_stopped(folders):
  options = json.loads((folders / 'one/generation_config.json').read_text())
  tokenizer = open_tokenizer(folders / 'one', 512)
  ends = [tokenizer.end_of_turn, tokenizer.end_of_text]
  assert options['eos_token_id'] == ends and options['do_sample'] is False


def test_a_folder_with_something_in_it_is_refused(folders):
  with pytest.raises(ConfigError, match='one is not empty'):
    export.run(folders / 'first', folders / 'one')


def test_a_run_does_not_continue_from_other_weights(
  folders, data_dir, tmp_path
):
  work = tmp_path / 'run'
  work.mkdir()
  before = json.loads((folders / 'second/model.json').read_text())
  before['norm'] *= 2
  (work / 'model.json').write_text(json.dumps(before))
  with pytest.raises(DataError, match='one has changed since the run in'):
    small.run_job(data_dir, work, **{'model.pretrained': str(folders / 'one')})
