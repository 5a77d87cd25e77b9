"""From a folder through a run to a folder: the door and its files."""

import json

import jax
import numpy as np
import pytest

from pdl_jax.data.pretrained_tokenizer import open_tokenizer
from pdl_jax.data.prompt import make_format
from pdl_jax.errors import ConfigError, DataError
from pdl_jax.pretrained import peft
from pdl_jax.pretrained.huggingface import HFModel
from pdl_jax.run import export
from pdl_jax.run.load_model import load_model
from pdl_jax.run.prepare import load_source
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
    [json.loads(x)['token_ids'] for x in file.read_text('utf-8').splitlines()]
    for file in (
      folders / 'first/predictions/after.jsonl',
      folders / 'second/predictions/before.jsonl',
    )
  )
  assert first == second
  kept = json.loads((folders / 'second/model.json').read_text('utf-8'))
  assert len(kept['digest']) == 8 and len(kept['logits']) == 4


def test_training_changed_the_weights(folders):
  one, two = (HFModel(folders / x).params() for x in ('one', 'two'))
  assert jax.tree.structure(one) == jax.tree.structure(two)
  assert np.abs(one['embed_VxD'] - two['embed_VxD']).max() > 0


def test_the_tokenizer_and_the_format_of_prompts_go_along(folders):
  definition = (folders / 'first/tokenizer.json').read_text('utf-8')
  assert (folders / 'one/tokenizer.json').read_text('utf-8') == definition
  tokenizer = open_tokenizer(folders / 'one', 512)
  asked = tokenizer.chat.render([('user', ' Hm? ')], opens=True)
  assert asked == '<|im_start|>user\nHm?<|im_end|>\n<|im_start|>assistant\n'
  by_template = make_format(tokenizer).prompt('Say.', ['a b'], 99)
  tokenizer.chat = None
  assert by_template == make_format(tokenizer).prompt('Say.', ['a b'], 99)


def test_the_card_has_the_results_and_the_command(folders):
  card = (folders / 'two/README.md').read_text('utf-8')
  results = json.loads((folders / 'second/results.json').read_text('utf-8'))
  (_, after) = results['columns'].values()
  assert f'{after["perplexity"]["value"]:.2f}' in card
  assert '--config=configs/summarize.py' in card
  assert f'--config.model.pretrained={folders / "one"}' in card


def test_generation_stops_where_the_run_stopped(folders):
  options = json.loads(
    (folders / 'one/generation_config.json').read_text('utf-8')
  )
  tokenizer = open_tokenizer(folders / 'one', 512)
  ends = [tokenizer.end_of_turn, tokenizer.end_of_text]
  assert options['eos_token_id'] == ends and options['do_sample'] is False


@pytest.fixture(scope='module')
def adapted(folders, data_dir):
  """A run of adapters on an export, and another one that goes on with them."""
  less = {
    'train.steps': 3, 'train.checkpoint_every': 3, 'evaluate.examples': 4,
    'evaluate.validation_examples': 4, 'optimizer.trainable': 'lora',
    'optimizer.learning_rate': 1e-2, 'model.lora.rank': 4,
    'model.pretrained': str(folders / 'one'), 'model.lora.targets': 'value,up',
  }  # fmt: skip
  small.run_job(data_dir, folders / 'third', **less)
  export.run(folders / 'third', folders / 'adapter', adapter_alone=True)
  export.run(folders / 'third', folders / 'three')
  adapter = {'model.adapter': str(folders / 'adapter')}
  small.run_job(data_dir, folders / 'fourth', **less, **adapter)
  return folders


def perplexity(folder, which):
  columns = json.loads((folder / 'results.json').read_text('utf-8'))['columns']
  return list(columns.values())[which]['perplexity']['value']


def test_adapters_go_on_from_where_their_run_ended(adapted):
  third, fourth = adapted / 'third', adapted / 'fourth'
  # They have learned something.
  assert perplexity(third, 1) < 0.999 * perplexity(third, 0)
  assert perplexity(fourth, 0) == pytest.approx(perplexity(third, 1), rel=1e-6)
  assert perplexity(fourth, 1) < 0.999 * perplexity(fourth, 0)


def test_what_does_not_fit_is_refused_before_there_is_a_run(
  adapted, data_dir
):
  adapter = {'model.adapter': str(adapted / 'adapter')}
  with pytest.raises(ConfigError, match='needs the pretrained model that it'):
    small.run_job(data_dir, adapted / 'refused', **adapter)
  adapter['model.pretrained'] = str(adapted / 'one')
  adapter['optimizer.trainable'] = 'lora'
  with pytest.raises(ConfigError, match=r'give --config.model.lora.rank=4 '):
    small.run_job(data_dir, adapted / 'refused', **adapter)
  assert not (adapted / 'refused').exists()


def test_people_see_which_model_an_adapter_says_it_is_for(
  adapted, data_dir, capsys
):
  settings = small.settings(data_dir, **{
    'model.pretrained': str(adapted / 'one'),
    'model.adapter': str(adapted / 'adapter'),
  })  # fmt: skip
  load_model(settings, None, load_source(settings, 'train'))
  assert f'made for {adapted / "one"}, added to the weights' in (
    capsys.readouterr().out
  )


def test_the_folder_of_an_adapter_names_its_base(adapted):
  says = json.loads(
    (adapted / 'adapter/adapter_config.json').read_text('utf-8')
  )
  assert says['base_model_name_or_path'] == str(adapted / 'one')
  assert says['target_modules'] == ['up_proj', 'v_proj']
  card = (adapted / 'adapter/README.md').read_text('utf-8')
  assert 'an adapter in the format of PEFT' in card
  assert f'--config.model.pretrained={adapted / "one"}' in card
  assert '--config.optimizer.trainable=lora' in card


def test_the_whole_export_has_the_adapter_added(adapted):
  base, whole = HFModel(adapted / 'one'), HFModel(adapted / 'three')
  adapter = peft.read(adapted / 'adapter', base.config())
  expected, found = peft.add(adapter, base.params()), whole.params()
  assert whole.config() == base.config()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected
  )


def test_a_run_without_adapters_has_none_to_write(folders):
  with pytest.raises(ConfigError, match='trained no adapter'):
    export.run(folders / 'second', folders / 'none', adapter_alone=True)
  assert not (folders / 'none').exists()


@pytest.mark.parametrize('there', [True, False])
def test_an_export_that_fails_leaves_nothing(
  folders, tmp_path, monkeypatch, there
):
  """The same command is then free to be given again."""
  to = tmp_path / 'to'
  if there:
    to.mkdir()

  def fail(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(export, 'write_model', fail)
    with pytest.raises(OSError, match='No space'):
      export.run(folders / 'first', to)
  assert [*tmp_path.rglob('*')] == [to] * there
  export.run(folders / 'first', to)
  assert [*tmp_path.iterdir()] == [to]
  assert (to / 'config.json').exists()


@pytest.mark.parametrize('alone', [False, True])
def test_what_no_family_has_is_refused_before_any_weight_is_read(
  data_dir, tmp_path, monkeypatch, alone
):
  low_rank = {'model.head': 'low_rank', 'model.rank': 4}
  settings = small.settings(data_dir, **low_rank)
  monkeypatch.setattr(export.restore, 'open_run', lambda *_: (settings, None))
  with pytest.raises(ConfigError, match='head low_rank.*pretrained=run:FOLDER'):
    export.run(tmp_path / 'run', tmp_path / 'to', alone)
  assert not (tmp_path / 'to').exists()


def test_a_folder_with_something_in_it_is_refused(folders):
  with pytest.raises(ConfigError, match='one is not empty'):
    export.run(folders / 'first', folders / 'one')


def test_a_run_does_not_continue_from_other_weights(
  folders, data_dir, tmp_path
):
  work = tmp_path / 'run'
  work.mkdir()
  before = json.loads((folders / 'second/model.json').read_text('utf-8'))
  before['norm'] *= 2
  (work / 'model.json').write_text(json.dumps(before), 'utf-8')
  with pytest.raises(DataError, match='one has changed since the run in'):
    small.run_job(data_dir, work, **{'model.pretrained': str(folders / 'one')})
