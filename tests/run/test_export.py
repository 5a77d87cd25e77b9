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
from tests.run.conftest import (
  perplexities,
  predictions_of,
  read,
  run_task,
  settings_of,
)


@pytest.fixture(scope='module')
def folders(quick_compile, texts, finished, tmp_path_factory):
  """A run from scratch, its export, and one of adapters that begins with that.

  Of the second: its adapter, its export, and a run that goes on with both.
  """
  root = tmp_path_factory.mktemp('export')
  (root / 'first').symlink_to(finished)
  export.run(root / 'first', root / 'one')
  changes = {
    'train.steps': 3, 'optimizer.trainable': 'lora',
    'optimizer.learning_rate': 1e-2, 'model.lora.rank': 4,
    'model.lora.targets': 'value,up', 'model.pretrained': str(root / 'one'),
  }  # fmt: skip
  run_task(texts, root / 'second', **changes)
  export.run(root / 'second', root / 'adapter', adapter_alone=True)
  export.run(root / 'second', root / 'two')
  adapter = {'model.adapter': str(root / 'adapter')}
  run_task(texts, root / 'third', **changes, **adapter)
  return root


def test_the_second_run_begins_where_the_first_ended(folders):
  first = predictions_of(folders / 'first', 'after')
  second = predictions_of(folders / 'second', 'before')
  for one, other in zip(first, second, strict=True):
    assert one['token_ids'] == other['token_ids']
  kept = read(folders / 'second/model.json')
  assert len(kept['digest']) == 8 and len(kept['logits']) == 4


def test_the_tokenizer_and_the_format_of_prompts_go_along(folders):
  definition = (folders / 'first/tokenizer.json').read_text('utf-8')
  assert (folders / 'one/tokenizer.json').read_text('utf-8') == definition
  size = HFModel(folders / 'one').config().vocab_size
  tokenizer = open_tokenizer(folders / 'one', size)
  asked = tokenizer.chat.render([('user', ' Hm? ')], opens=True)
  assert asked == '<|im_start|>user\nHm?<|im_end|>\n<|im_start|>assistant\n'
  by_template = make_format(tokenizer).prompt('Say.', ['a b'], 99)
  tokenizer.chat = None
  assert by_template == make_format(tokenizer).prompt('Say.', ['a b'], 99)
  # Generation stops where the run stopped.
  options = read(folders / 'one/generation_config.json')
  ends = [tokenizer.end_of_turn, tokenizer.end_of_text]
  assert options['eos_token_id'] == ends and options['do_sample'] is False


def test_cards_have_the_results_and_the_command(folders):
  after = f'{perplexities(folders / "second")[1]:.2f}'
  for name, note in (('two', False), ('adapter', True)):
    card = (folders / name / 'README.md').read_text('utf-8')
    for words in (
      after, '--config=configs/summarize.py',
      '--config.optimizer.trainable=lora',
      f'--config.model.pretrained={folders / "one"}',
    ):  # fmt: skip
      assert words in card
    assert ('an adapter in the format of PEFT' in card) == note


def test_adapters_go_on_from_where_their_run_ended(folders):
  second, third = folders / 'second', folders / 'third'
  start, then, again, end = *perplexities(second), *perplexities(third)
  # They have learned something.
  assert then < 0.999 * start and end < 0.999 * again
  assert again == pytest.approx(then, rel=1e-6)


def test_what_does_not_fit_is_refused_before_there_is_a_run(folders, texts):
  adapter = {'model.adapter': str(folders / 'adapter')}
  with pytest.raises(ConfigError, match='needs the pretrained model that it'):
    run_task(texts, folders / 'refused', **adapter)
  adapter['model.pretrained'] = str(folders / 'one')
  adapter['optimizer.trainable'] = 'lora'
  with pytest.raises(ConfigError, match=r'give --config.model.lora.rank=4 '):
    run_task(texts, folders / 'refused', **adapter)
  assert not (folders / 'refused').exists()


def test_people_see_which_model_an_adapter_says_it_is_for(
  folders, texts, capsys
):
  settings = settings_of(texts, **{
    'model.pretrained': str(folders / 'one'),
    'model.adapter': str(folders / 'adapter'),
  })  # fmt: skip
  load_model(settings, None, load_source(settings, 'train'))
  assert f'made for {folders / "one"}, added to the weights' in (
    capsys.readouterr().out
  )


def test_the_folder_of_an_adapter_names_its_base(folders):
  says = read(folders / 'adapter/adapter_config.json')
  assert says['base_model_name_or_path'] == str(folders / 'one')
  assert says['target_modules'] == ['up_proj', 'v_proj']


def test_the_whole_export_has_the_adapter_added(folders):
  base, whole = HFModel(folders / 'one'), HFModel(folders / 'two')
  adapter = peft.read(folders / 'adapter', base.config())
  expected, found = peft.add(adapter, base.params()), whole.params()
  assert whole.config() == base.config()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected
  )


def test_a_run_without_adapters_has_none_to_write(folders):
  with pytest.raises(ConfigError, match='trained no adapter'):
    export.run(folders / 'first', folders / 'none', adapter_alone=True)
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
  texts, tmp_path, monkeypatch, alone
):
  low_rank = {'model.head': 'low_rank', 'model.rank': 4}
  settings = settings_of(texts, **low_rank)
  monkeypatch.setattr(export.restore, 'open_run', lambda *_: (settings, None))
  with pytest.raises(ConfigError, match='head low_rank.*pretrained=run:FOLDER'):
    export.run(tmp_path / 'run', tmp_path / 'to', alone)
  assert not (tmp_path / 'to').exists()


def test_a_folder_with_something_in_it_is_refused(folders):
  with pytest.raises(ConfigError, match='one is not empty'):
    export.run(folders / 'first', folders / 'one')


def test_a_run_does_not_continue_from_other_weights(
  folders, texts, tmp_path
):
  work = tmp_path / 'run'
  work.mkdir()
  before = read(folders / 'second/model.json')
  before['norm'] *= 2
  (work / 'model.json').write_text(json.dumps(before), 'utf-8')
  with pytest.raises(DataError, match='one has changed since the run in'):
    run_task(texts, work, **{'model.pretrained': str(folders / 'one')})
