"""Pretrained weights: a file of our own, then the real one."""

import dataclasses
import inspect
from functools import partial

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import DataError, HostError
from pdl_jax.losses.fused.api import linear_token_stats
from pdl_jax.model import lm
from pdl_jax.pretrained.gguf import GGUFModel, find_package_file
from tests.gguf_file import interleaved
from tests.tiny_model import CONFIG, smollm2

FIELDS = {
  'vocab_size': CONFIG.vocab_size,
  'embedding_length': CONFIG.width,
  'block_count': CONFIG.layers,
  'attention.head_count': CONFIG.heads,
  'attention.head_count_kv': CONFIG.kv_heads,
  'rope.dimension_count': CONFIG.head_dim,
  'feed_forward_length': CONFIG.mlp,
  'context_length': CONFIG.context,
}


def tensors():
  """[out, in], as a checkpoint has them before it is converted to GGUF."""
  rng = np.random.default_rng(0)
  c, made = CONFIG, {}
  q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  for i in range(c.layers):
    shapes = {
      'attn_norm': (c.width,), 'ffn_norm': (c.width,), 'attn_q': (q, c.width),
      'attn_k': (kv, c.width), 'attn_v': (kv, c.width),
      'attn_output': (c.width, q), 'ffn_gate': (c.mlp, c.width),
      'ffn_up': (c.mlp, c.width), 'ffn_down': (c.width, c.mlp),
    }
    for name, shape in shapes.items():
      made[f'blk.{i}.{name}'] = rng.normal(size=shape).astype(np.float32)
  made['token_embd'] = rng.normal(size=(c.vocab_size, c.width))
  made['output_norm'] = rng.normal(size=c.width)
  return {f'{k}.weight': v.astype(np.float32) for k, v in made.items()}


def write(path, weights, architecture='llama', without=()):
  writer = gguf.GGUFWriter(path, architecture)
  for name, value in FIELDS.items():
    if name not in without:
      writer.add_uint32(f'{architecture}.{name}', value)
  writer.add_float32(f'{architecture}.rope.freq_base', 10_000.0)
  writer.add_float32(f'{architecture}.attention.layer_norm_rms_epsilon', 1e-5)
  for name, weight in weights.items():
    heads = {'attn_q': CONFIG.heads, 'attn_k': CONFIG.kv_heads}
    heads = heads.get(name.removesuffix('.weight').split('.')[-1])
    stored = interleaved(weight, heads) if heads else weight
    writer.add_tensor(name, stored)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return GGUFModel(path)


def test_every_weight_arrives_at_its_place(tmp_path):
  weights = tensors()
  model = write(tmp_path / 'tiny.gguf', weights)
  config, params = model.config(), model.params()
  assert config.norm_eps == pytest.approx(1e-5)
  assert config.heads == CONFIG.heads and config.layers == CONFIG.layers
  shapes = jax.eval_shape(partial(lm.init, CONFIG), jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  x = np.random.default_rng(1).normal(size=CONFIG.width)
  (blocks,) = params['blocks']
  for i in range(CONFIG.layers):
    get = lambda name, i=i: weights[f'blk.{i}.{name}.weight']
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      found = np.einsum('d,dhk->hk', x, blocks['attention'][ours][i]).ravel()
      np.testing.assert_allclose(found, get(f'attn_{theirs}') @ x, rtol=1e-4)
    heads = np.arange(CONFIG.heads * CONFIG.head_dim)
    shaped = heads.reshape(CONFIG.heads, CONFIG.head_dim)
    found = np.einsum('hk,hkd->d', shaped, blocks['attention']['output'][i])
    np.testing.assert_allclose(found, get('attn_output') @ heads, rtol=1e-3)
    for name in ('gate', 'up', 'down'):
      found = blocks['mlp'][name][i]
      np.testing.assert_array_equal(found, get(f'ffn_{name}').T)
    for ours, theirs in (('attention_norm', 'attn'), ('mlp_norm', 'ffn')):
      found = blocks[ours]['scale'][i]
      np.testing.assert_array_equal(found, get(f'{theirs}_norm'))
  embed, norm = weights['token_embd.weight'], weights['output_norm.weight']
  np.testing.assert_array_equal(params['embed_VxD'], embed)
  np.testing.assert_array_equal(params['norm']['scale'], norm)


def test_missing_and_unknown_tensors_are_named(tmp_path):
  weights = tensors()
  del weights['blk.1.ffn_up.weight']
  weights['blk.0.attn_v.bias'] = weights['output_norm.weight']
  model = write(tmp_path / 'odd.gguf', weights)
  with pytest.raises(DataError) as error:
    model.params()
  said = str(error.value)
  assert said.startswith('odd.gguf: missing tensors blk.1.ffn_up.weight; unkn')
  assert said.endswith('unknown tensors blk.0.attn_v.bias')


def test_another_architecture_is_refused(tmp_path):
  for kind in ('gemma2', 'gpt2'):
    model = write(tmp_path / 'g.gguf', tensors(), architecture=kind)
    with pytest.raises(
      DataError,
      match=rf"g\.gguf holds a '{kind}' model; of GGUF only llama, qwen2, qwen3"
      ' are .* folder with config.json and safetensors$',
    ):
      model.config()


def test_an_undeclared_size_is_named(tmp_path):
  model = write(tmp_path / 't.gguf', tensors(), without=['context_length'])
  with pytest.raises(
    DataError, match=r't\.gguf \(llama\) does not declare context_length'
  ):
    model.config()


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / 'cut.gguf'
  write(path, tensors())
  whole = path.read_bytes()
  for content in (b'', whole[:3], whole[:100], whole[:-999], b'text' * 99):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'cut\.gguf is not a whole GGUF file'):
      GGUFModel(path)


def test_lengths_and_types_that_are_none(tmp_path):
  """Each place of the header in turn is a huge number: never a traceback."""
  path = tmp_path / 'cut.gguf'
  write(path, {'token_embd.weight': np.ones((32, 32), np.float32)})
  whole = path.read_bytes()
  first = whole.index(b'token_embd.weight') - 8
  for at in range(4, first + 57, 4):
    path.write_bytes(whole[:at] + b'\xee' * 4 + whole[at + 4 :])
    try:
      GGUFModel(path).config()
    except DataError as error:
      assert '\n' not in str(error) and 'cut.gguf' in str(error)
  kind = first + 8 + 17 + 4 + 16
  path.write_bytes(whole[:kind] + b'\xee\0\0\0' + whole[kind + 4 :])
  with pytest.raises(DataError, match='tensors of a type that gguf does not'):
    GGUFModel(path)


def test_a_part_of_a_split_file_is_named(tmp_path):
  path = tmp_path / 'm-00001-of-00003.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_uint16('split.no', 0)
  writer.add_uint16('split.count', 3)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(DataError, match='is one of 3 parts .*-split --merge'):
    GGUFModel(path)


def test_another_file_or_a_folder_is_named(tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(b'\x80\0\0\0\0\0\0\0{"__metadata__"' + b' ' * 200)
  with pytest.raises(DataError, match='in safetensors its folder is given'):
    GGUFModel(path)
  with pytest.raises(DataError, match=r'cannot be read \(Is a directory\)'):
    GGUFModel(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path):
  made = tensors()
  made['blk.1.ffn_up.weight'][3, 4] = np.inf
  with pytest.raises(DataError, match=r'infinite numbers in blk\.1\.ffn_up\.w'):
    write(tmp_path / 't.gguf', made).params()


@pytest.mark.parametrize(
  'package',
  ['no_such_package', 'wave', 'json', 'Qwen2.5-0.5B', 'model.gguf', 'json.x',
   '.x', '..', 'os.path.join', '__main__', 'a b', 'pdl_jax.none'],
)  # fmt: skip
def test_a_package_without_weights(package):
  with pytest.raises(HostError) as error:
    find_package_file(package)
  assert f'the package {package} ' in str(error.value)
  assert 'requirements-nodeps.txt' in str(error.value)
  assert '\n' not in str(error.value)


def test_smollm2_has_its_shape():
  config = dataclasses.replace(
    smollm2().config(), dtype='bfloat16', remat=True
  )
  shape = (config.layers, config.width, config.heads, config.kv_heads)
  assert shape == (30, 576, 9, 3)
  assert (config.head_dim, config.mlp) == (64, 1536)
  assert (config.vocab_size, config.context) == (49_152, 8192)
  assert config.rope_base == 1e5
  assert config.norm_eps == pytest.approx(1e-5)
  assert (config.dtype, config.remat) == ('bfloat16', True)


def with_interleaved_heads(params):
  """As the file holds them: what reading without un-permuting would give."""

  def shuffle(x):
    pairs = x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)
    return pairs.reshape(x.shape)

  (blocks,) = params['blocks']
  attention = dict(blocks['attention'])
  for name in ('query', 'key'):
    attention[name] = shuffle(attention[name])
  return {**params, 'blocks': ({**blocks, 'attention': attention},)}


def test_smollm2_predicts_english():
  config, params = smollm2().config(), smollm2().params()
  assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  (ids,) = Tokenizer.from_gguf(smollm2()).encode([inspect.getdoc(np)])
  ids = np.asarray(ids)[None, :256]

  @jax.jit
  def nats(params):
    read = ids[:, :-1]
    x = lm.hidden(
      config, params, read, jnp.ones_like(read), jnp.arange(255)[None]
    )
    return linear_token_stats(
      x, params['embed_VxD'], ids[:, 1:], wants=(), transposed=True
    ).nll.mean()

  # Measured 3.09, and 5.61 with query and key in the order of the file.
  assert nats(params) < 3.3
  assert nats(with_interleaved_heads(params)) > 4.5
