"""Adapters in PEFT's format: what PEFT computes, and what is refused."""

import dataclasses
import json
import shutil
from functools import cache

import numpy as np
import pytest

from pdl_jax.errors import ConfigError, DataError
from pdl_jax.model import lora
from pdl_jax.model.lora import LoRAConfig
from pdl_jax.pretrained import peft, safetensors
from pdl_jax.pretrained.huggingface import HFModel
from pdl_jax.run import load_model
from tests import hf_folder, hf_weights, small
from tests.pretrained.test_huggingface import TOKENS, logits
from tests.tiny_model import random_params

pytestmark = pytest.mark.usefixtures('quick_compile')
CASES = json.loads((hf_folder.GOLDEN / 'peft.json').read_text('utf-8'))
GOLDEN = np.load(hf_folder.GOLDEN / 'peft.npz')


def origin(name):
  """A copy of a weight of the model has the numbers of that."""
  copy = name.removeprefix('base_model.model.').replace('.base_layer', '')
  return copy if name.endswith('.base_layer.weight') else name


def adapter_tensors(name):
  shapes = CASES[name]['shapes']
  return {n: hf_weights.tensor(origin(n), s) for n, s in shapes.items()}


def write(path, name, tensors=None, **changes):
  """The folder of a case."""
  path.mkdir(exist_ok=True)
  says = CASES[name]['config'] | changes
  (path / peft.CONFIG).write_text(json.dumps(says), 'utf-8')
  made = adapter_tensors(name) if tensors is None else tensors
  safetensors.write_file(path / peft.TENSORS, made)
  return path


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """The model of each case, opened once."""
  root = tmp_path_factory.mktemp('peft')
  names = cache(
    lambda base: HFModel(hf_folder.write_case(root / base, base))
  )
  return lambda name: names(CASES[name]['base'])


@pytest.mark.parametrize('name', ['plain', 'rslora'])
def test_logits_are_those_of_peft(opened, tmp_path, name):
  model = opened(name)
  adapter = peft.read(write(tmp_path / 'a', name), model.config())
  params = model.params()
  adapter.check_head(params)
  found = logits(model.config(), peft.add(adapter, params), TOKENS)[0]
  plain = logits(model.config(), params, TOKENS)[0]
  print(name, np.abs(found - GOLDEN[name]).max())
  np.testing.assert_allclose(found, GOLDEN[name], atol=1e-4, rtol=0)
  assert np.abs(plain - found).max() > 0.1


def test_another_head_begins_with_the_adapted_rows(
  opened, tmp_path, monkeypatch
):
  base = opened('plain')
  config, params = base.config(), base.params()
  rows_VxD = np.asarray(params['head'][lora.MATRIX])
  model = load_model.Model('plain', config, params, None)
  start = load_model.Start(config, lambda *_: model)
  monkeypatch.setattr(load_model, '_start', lambda _: start)
  settings = small.settings(tmp_path, **{
    'model.pretrained': './plain', 'model.head': 'low_rank', 'model.rank': 4,
    'model.adapter': str(write(tmp_path / 'a', 'plain')),
  })  # fmt: skip
  found = load_model.load_model(settings, None, None)
  assert found.head_is_new
  adapter = peft.read(tmp_path / 'a', config)
  expected = peft.add(adapter, params)['head'][lora.MATRIX]
  np.testing.assert_allclose(found.outputs_VxD, expected, atol=1e-6)
  assert np.abs(found.outputs_VxD - rows_VxD).max() > 0.01


def test_an_adapter_is_trained_on_from_where_it_is(opened, tmp_path):
  """Beside the matrices, and not in them."""
  model = opened('plain')
  adapter = peft.read(write(tmp_path / 'a', 'plain'), model.config())
  asked = LoRAConfig(4, 6.0, targets=('head', 'value', 'query'))
  adapter.check(asked)
  config = dataclasses.replace(model.config(), lora=asked)
  params = peft.insert(adapter, model.params())
  found = logits(config, params, TOKENS)[0]
  np.testing.assert_allclose(found, GOLDEN['plain'], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
  ('name', 'asked', 'said'),
  [
    (
      'plain', LoRAConfig(8, 12.0, targets=('query', 'value', 'head')),
      '--config.model.lora.rank=4 --config.model.lora.alpha=6 '
      '--config.model.lora.targets=query,value,head',
    ),
    (
      'plain', LoRAConfig(4, 6.0, targets=('query',)),
      '--config.model.lora.targets=query,value,head',
    ),
    (
      'rslora', LoRAConfig(4, 6.0, targets=(*lora.ATTENTION, *lora.MLP)),
      '--config.model.lora.alpha=12 ',
    ),
  ],
)  # fmt: skip
def test_another_adapter_is_not_trained_on(
  opened, tmp_path, name, asked, said
):
  config = opened(name).config()
  adapter = peft.read(write(tmp_path / 'a', name), config)
  with pytest.raises(ConfigError, match=said):
    adapter.check(asked)


@pytest.mark.parametrize('base', ['llama2', 'qwen3', 'gemma3'])
def test_out_and_in_are_bit_for_bit(tmp_path, base):
  """With the names that PEFT has."""
  config = HFModel(hf_folder.write_case(tmp_path / 'm', base)).config()
  targets = (*lora.ATTENTION, *lora.MLP)
  targets += ('head',) if config.head.kind == 'dense' else ()
  asked = LoRAConfig(3, 5.0, 0.1, targets)
  config = dataclasses.replace(config, lora=asked)
  params = random_params(config)
  (tmp_path / 'a').mkdir()
  peft.write(tmp_path / 'a', config, lora.adapters(params), 'base')
  plain = dataclasses.replace(config, lora=lora.NO_LORA)
  again = peft.read(tmp_path / 'a', plain)
  again.check(asked)
  back = peft.insert(again, {**params, 'blocks': (params['blocks'][0],)})
  for x, y in zip(flat(back), flat(params), strict=True):
    np.testing.assert_array_equal(x, y)


def flat(tree):
  (group,) = tree['blocks']
  return [
    part[name]
    for part in (tree.get('head', {}), group['attention'], group['mlp'])
    for name in sorted(part) if lora.is_adapter(name)
  ]  # fmt: skip


def test_the_files_are_as_peft_writes_them(opened, tmp_path):
  config = opened('rslora').config()
  targets = (*lora.ATTENTION, *lora.MLP)
  config = dataclasses.replace(config, lora=LoRAConfig(4, 6.0, 0.1, targets))
  params = lora.adapters(random_params(config))
  peft.write(tmp_path, config, params, 'some/base')
  found = safetensors.open_file(tmp_path / peft.TENSORS)
  shapes = {name: list(x.shape) for name, x in found.items()}
  assert shapes == CASES['rslora']['shapes']
  says = json.loads((tmp_path / peft.CONFIG).read_text('utf-8'))
  theirs = CASES['rslora']['config']
  own = {'use_rslora', 'target_modules', 'base_model_name_or_path'}
  for key in says.keys() - own:
    assert says[key] == theirs[key], key
  assert says['base_model_name_or_path'] == 'some/base'
  assert says['target_modules'] == [
    'down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'
  ]  # fmt: skip


def test_what_lies_side_by_side_in_gpt2_is_refused(opened, tmp_path):
  """And adapters of its other matrices are written and read."""
  config = opened('gpt2').config()
  folder = write(tmp_path / 'a', 'gpt2')
  with pytest.raises(DataError, match=r'adapter of transformer\.h\.0\.attn\.c_'
                     r'attn\.weight.*merge_and_unload'):  # fmt: skip
    peft.read(folder, config)
  targets = ('output', 'up', 'down')
  asked = dataclasses.replace(config, lora=LoRAConfig(2, 6.0, targets=targets))
  params = random_params(asked)
  (tmp_path / 'b').mkdir()
  peft.write(tmp_path / 'b', asked, lora.adapters(params), 'base')
  again = peft.read(tmp_path / 'b', config)
  again.check(asked.lora)
  for x, y in zip(flat(peft.insert(again, params)), flat(params), strict=True):
    np.testing.assert_array_equal(x, y)
  says = json.loads((tmp_path / 'b' / peft.CONFIG).read_text('utf-8'))
  assert says['target_modules'] == ['attn.c_proj', 'mlp.c_fc', 'mlp.c_proj']
  both = LoRAConfig(2, 6.0, targets=('query', 'up'))
  asked = dataclasses.replace(config, lora=both)
  adapters = lora.adapters(random_params(asked))
  with pytest.raises(ConfigError, match='without --adapter the whole model'):
    peft.write(tmp_path / 'c', asked, adapters, 'base')


def without(*names):
  def change(tensors):
    for name in names:
      del tensors[name]
  return change


def put(name, shape, dtype=np.float32, fill=0):
  return lambda tensors: tensors.update({name: np.full(shape, fill, dtype)})


ROOT = 'base_model.model.model.layers.'
Q_A = f'{ROOT}0.self_attn.q_proj.lora_A.weight'


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (without(Q_A), f'missing tensors {Q_A}'),
    (
      without(*(f'{ROOT}1.self_attn.v_proj.lora_{x}.weight' for x in 'AB')),
      f'missing tensors {ROOT}1.self_attn.v_proj.lora_A.weight, '
      f'{ROOT}1.self_attn.v_proj.lora_B.weight',
    ),
    (
      put(f'{ROOT}2.self_attn.v_proj.lora_A.weight', (4, 32)),
      f'unknown tensors {ROOT}2.self_attn.v_proj.lora_A.weight',
    ),
    (
      put('base_model.model.model.embed_tokens.lora_embedding_A', (4, 48)),
      'unknown tensors base_model.model.model.embed_tokens.lora_embedding_A',
    ),
    (put(Q_A, (4, 31)), rf'other shapes {Q_A} \(4, 31\), not \(4, 32\)'),
    (lambda tensors: tensors.clear(), 'no adapter in it'),
    (put(Q_A, (0, 32)), rf'other shapes {Q_A} \(0, 32\)'),
    (put(Q_A, (4, 32), np.int32), f'not finite floats in {Q_A}'),
    (put(Q_A, (4, 32), fill=np.nan), f'not finite floats in {Q_A}'),
  ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(opened, tmp_path, change, said):
  tensors = adapter_tensors('plain')
  change(tensors)
  folder = write(tmp_path / 'a', 'plain', tensors)
  with pytest.raises(DataError, match=f'does not fit the model: .*{said}') as e:
    peft.read(folder, opened('plain').config())
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'peft_type': 'IA3'}, "peft_type 'IA3' .* only LORA is"),
    ({'use_dora': True}, 'not mapped .* use_dora True; merge it'),
    ({'bias': 'all'}, "bias 'all' is not mapped; only none is"),
    ({'modules_to_save': ['norm']}, r"not mapped .* modules_to_save \['norm'"),
    ({'lora_alpha': None}, 'does not declare lora_alpha'),
    ({'alpha_pattern': {'q_proj': 2}}, 'not mapped .* alpha_pat.*merge_and'),
    ({'rank_pattern': {'q_proj': 2}}, 'not mapped .* rank_pat.*merge_and_'),
    ({'r': 0}, 'r 0 is not mapped; it is no whole number'),
    ({'r': '4'}, "r '4' is not mapped"),
    ({'lora_alpha': '16'}, "lora_alpha '16' .* it is no number"),
    ({'lora_alpha': True}, 'lora_alpha True .* it is no number'),
    ({'use_rslora': 'false'}, "use_rslora 'false'"),
    ({'peft_type': ['LORA']}, 'only LORA is mapped'),
    ({'r': 5}, r'lora_A.weight \(4, 32\), not \(5, 32\)'),
    ({'lora_bias': True}, 'not mapped .* lora_bias True'),
    ({'layer_replication': [[0, 2]]}, r'layer_replication \[\[0, 2\]\]'),
    ({'ensure_weight_tying': True}, 'ensure_weight_tying True'),
    ({'megatron_config': {'a': 1}}, 'megatron_config'),
    ({'key_of_tomorrow': 0.5}, 'not mapped .* key_of_tomorrow 0.5'),
    *(({'init_lora_weights': x}, f"init_lora_weights '{x}' .* changes the base")
      for x in ('pissa', 'pissa_niter_16', 'olora', 'OLoRA', 'corda', 'loftq',
                'lora_ga', 'mica', 'tomorrow')),
  ],
)
def test_other_kinds_of_adapters_are_refused(opened, tmp_path, changes, said):
  folder = write(tmp_path / 'a', 'plain', **changes)
  with pytest.raises(DataError, match=said):
    peft.read(folder, opened('plain').config())


@pytest.mark.parametrize(
  'changes',
  [
    *({'init_lora_weights': x} for x in (True, False, 'gaussian', 'eva',
                                         'orthogonal', None)),
    {'lora_ga_config': {'scale': 'stable'}, 'eva_config': {'rho': 2.0},
     'exclude_modules': ['x'], 'revision': 'main', 'peft_version': '0.21.2',
     'qalora_group_size': 16, 'megatron_core': 'megatron.core',
     'corda_config': None, 'target_modules': 'all-linear',
     'ensure_weight_tying': False, 'layers_to_transform': []},
  ],
)  # fmt: skip
def test_what_changes_no_adapter_is_read(opened, tmp_path, changes):
  config = opened('plain').config()
  one = peft.read(write(tmp_path / 'a', 'plain'), config)
  other = peft.read(write(tmp_path / 'b', 'plain', **changes), config)
  assert one.scale == other.scale == 1.5


def test_an_adapter_config_is_a_strict_object(opened, tmp_path):
  folder = write(tmp_path / 'a', 'plain')
  for text, said in (
    ('[]', 'but a list'), ('{"r": 4, "r": 8}', 'stands twice'), ('', 'empty')
  ):  # fmt: skip
    (folder / peft.CONFIG).write_text(text, encoding='utf-8')
    with pytest.raises(DataError, match=said):
      peft.read(folder, opened('plain').config())


@pytest.mark.parametrize('layer', [[1], 1])
def test_an_adapter_of_one_layer_is_added_and_not_trained_on(
  opened, tmp_path, layer
):
  tensors = {
    name: x for name, x in adapter_tensors('plain').items()
    if f'{ROOT}0' not in name
  }  # fmt: skip
  says = {'layers_to_transform': layer}
  folder = write(tmp_path / 'a', 'plain', tensors, **says)
  model = opened('plain')
  adapter = peft.read(folder, model.config())
  asked = LoRAConfig(4, 6.0, targets=('query', 'value', 'head'))
  with pytest.raises(ConfigError, match='in some of the layers; only one'):
    adapter.check(asked)
  params = model.params()
  old, new = (
    x['blocks'][0]['attention']['query']
    for x in (params, peft.add(adapter, params))
  )
  np.testing.assert_array_equal(new[0], old[0])
  assert np.abs(new[1] - old[1]).max() > 0.1


def test_a_negative_factor_is_added_and_not_trained_on(opened, tmp_path):
  folder = write(tmp_path / 'a', 'plain', lora_alpha=-6)
  adapter = peft.read(folder, opened('plain').config())
  with pytest.raises(ConfigError, match='factor -1.5; only one with a fac'):
    adapter.check(LoRAConfig(4, 6.0, targets=('query', 'value', 'head')))


def test_a_pickle_or_no_folder_is_refused(opened, tmp_path):
  config = opened('plain').config()
  with pytest.raises(DataError, match=r'there is no .*adapter_config.json'):
    peft.read(tmp_path / 'b', config)
  folder = write(tmp_path / 'a', 'plain')
  shutil.move(folder / peft.TENSORS, folder / 'adapter_model.bin')
  with pytest.raises(DataError, match='pickles'):
    peft.read(folder, config)


def test_the_adapter_of_another_head_is_refused(opened, tmp_path):
  tensors = adapter_tensors('plain')
  tensors['base_model.model.lm_head.base_layer.weight'] += 1
  folder = write(tmp_path / 'a', 'plain', tensors)
  model = opened('plain')
  adapter = peft.read(folder, model.config())
  with pytest.raises(DataError, match='is not the output head of the model'):
    adapter.check_head(model.params())
