"""GGUF files: the models of their folders, the real one, refusals."""

import dataclasses
import inspect

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.errors import DataError, HostError
from pdl_jax.losses.fused.api import linear_token_stats
from pdl_jax.losses.heads import LinearHead
from pdl_jax.model import lm
from pdl_jax.pretrained.gguf import ARCHITECTURES, GGUFModel, find_package_file
from pdl_jax.pretrained.huggingface import HFModel
from tests import hf_folder
from tests.gguf_file import metadata, tensors, write, write_case
from tests.hf_folder import CASES
from tests.tiny_model import smollm2

pytestmark = pytest.mark.usefixtures('quick_compile')
# GGUF does not say the windows of Qwen2.
READ = sorted(
  name for name, case in CASES.items()
  if case['config']['model_type'] in ARCHITECTURES and name != 'qwen2'
)  # fmt: skip
Q8 = gguf.GGMLQuantizationType.Q8_0


def refusal(model):
  with pytest.raises(DataError) as error:
    model.params()
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.fixture
def whole(tmp_path):
  """A file to be damaged."""
  return write_case(tmp_path / 'cut.gguf', 'llama3').path


@pytest.mark.parametrize('name', READ)
def test_the_model_is_that_of_the_folder(tmp_path, name):
  """Which computes what transformers does."""
  folder = HFModel(hf_folder.write_case(tmp_path / 'folder', name))
  model = write_case(tmp_path / 'a.gguf', name)
  jax.tree.map(
    np.testing.assert_array_equal, model.params(), folder.params()
  )
  ours, theirs = model.config(), folder.config()
  assert ours.norm_eps == pytest.approx(theirs.norm_eps)
  assert dataclasses.replace(ours, norm_eps=theirs.norm_eps) == theirs


@pytest.mark.parametrize('dtype', [
  gguf.GGMLQuantizationType[name]
  for name in ('F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0')
])  # fmt: skip
def test_quantized_tensors_are_near(tmp_path, dtype):
  plain = write_case(tmp_path / 'a.gguf', 'qwen3').params()
  packed = {
    f'blk.{layer}.attn_{part}.weight': dtype for layer in (0, 1)
    for part in ('q', 'k', 'v')
  }  # fmt: skip
  model = write_case(tmp_path / 'b.gguf', 'qwen3', quantized=packed)
  (ours,), (before,) = model.params()['blocks'], plain['blocks']
  assert ours['attention']['query'].dtype == np.float32
  for name in ('query', 'key', 'value'):
    x, y = ours['attention'][name], before['attention'][name]
    off = np.abs(x - y).max() / np.abs(y).max()
    assert 0 < off < 0.13, (name, off)


@pytest.mark.parametrize('dtype', ['Q4_K', 'Q6_K', 'IQ4_XS'])
def test_kinds_that_gguf_reads_alone_are_read(tmp_path, dtype):
  """A block of them has 256 numbers; gguf cannot write one."""
  kind = gguf.GGMLQuantizationType[dtype]
  size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  config = CASES['qwen3']['config'] | {'intermediate_size': size}
  keys, made = metadata({'config': config}), tensors(CASES['qwen3'])[1]
  raw = np.random.default_rng(0).integers(0, 60, (32, block_bytes), np.uint8)
  for layer in (0, 1):
    for part in ('gate', 'up'):
      made[f'blk.{layer}.ffn_{part}.weight'] = np.ones((size, 32), np.float32)
    made[f'blk.{layer}.ffn_down.weight'] = np.ones((32, size), np.float32)
  writer = gguf.GGUFWriter(tmp_path / 'k.gguf', 'qwen3')
  for key, value in keys.items():
    add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
    add(f'qwen3.{key}', value)
  for name, x in made.items():
    if name == 'blk.1.ffn_down.weight':
      writer.add_tensor(name, raw, raw_dtype=kind)
    else:
      writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  (blocks,) = GGUFModel(tmp_path / 'k.gguf').params()['blocks']
  expected = gguf.quants.dequantize(raw, kind)
  np.testing.assert_array_equal(blocks['mlp']['down'][1], expected.T)


def test_a_type_that_gguf_does_not_read_is_named(tmp_path, monkeypatch):
  quantized = {'blk.1.ffn_up.weight': Q8}
  model = write_case(tmp_path / 'a.gguf', 'llama2', quantized=quantized)
  monkeypatch.delitem(gguf.quants._type_traits, Q8)
  said = refusal(model)
  assert 'a.gguf: blk.1.ffn_up.weight is of type Q8_0' in said


def test_a_copy_of_the_embedding_is_tied(tmp_path):
  kind, made = tensors(CASES['llama3'])
  made['output.weight'] = made['token_embd.weight']
  keys = metadata(CASES['llama3'])
  model = write(tmp_path / 'a.gguf', kind, keys, made)
  assert model.config().head.kind == 'tied'
  assert 'head' not in model.params()
  made['output.weight'] = made['token_embd.weight'] + 1
  model = write(tmp_path / 'b.gguf', kind, keys, made)
  assert model.config().head.kind == 'dense'
  np.testing.assert_array_equal(
    model.params()['head']['matrix_VxD'], made['output.weight']
  )


def test_a_list_that_says_the_same_of_each_layer_is_one_number(tmp_path):
  model = write_case(
    tmp_path / 'a.gguf', 'llama2', **{'attention.head_count_kv': [2, 2]}
  )
  assert model.config().kv_heads == 2


def test_a_table_that_is_not_llama_3s_is_refused(tmp_path):
  kind, made = tensors(CASES['llama3'])
  keys = metadata(CASES['llama3'])
  for table in ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0], []):
    made['rope_freqs.weight'] = np.float32(table)
    said = refusal(write(tmp_path / 'a.gguf', kind, keys, made))
    assert f'a.gguf (llama): rope_freqs.weight {table} is not' in said
  made['rope_freqs.weight'] = np.ones(4, np.float32)
  model = write(tmp_path / 'b.gguf', kind, keys, made)
  assert model.config().rope_scaling.kind == 'none'


def test_the_table_of_llama_3_2_is_recognised(tmp_path):
  rope = {
    'rope_type': 'llama3', 'rope_theta': 500_000.0, 'factor': 32.0,
    'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }  # fmt: skip
  config = CASES['llama3']['config'] | {
    'rope_parameters': rope, 'head_dim': 64, 'hidden_size': 256,
  }
  case = CASES['llama3'] | {'config': config}
  kind, made = tensors(case)
  model = write(tmp_path / 'a.gguf', kind, metadata(case), made)
  found = model.config().rope_scaling
  assert (found.factor, found.low, found.high) == (32.0, 1.0, 4.0)
  assert (found.kind, found.original) == ('llama3', 8192)


@pytest.mark.parametrize(('name', 'changes', 'parts'), [
  ('llama2', {'rope.scaling.type': 'longrope', 'rope.scaling.factor': 2.0},
   ["rope_type 'longrope' is not mapped"]),
  ('llama3', {'rope.scaling.factor': 2.0}, ['rope.scaling.factor 2.0 is not']),
  ('llama2', {'attention.sliding_window': 8, 'expert_count': 4},
   ['attention.sliding_window 8', 'expert_count 4']),
  ('llama2', {'rope.dimension_count': 4}, ['rope.dimension_count 4 is not']),
  ('llama2', {'attention.head_count_kv': [2, 4]},
   ['attention.head_count_kv [2, 4] is not']),
  ('qwen3', {'attention.value_length': 8}, ['attention.value_length 8 is not']),
  ('qwen3', {'attention.causal': False}, ['attention.causal False is not']),
  ('qwen3', {'context_length': None}, ['does not declare context_length']),
  ('llama3', {'block_count': 3}, ['missing tensors blk.2.attn_k.weight']),
  ('qwen2_tied', {'block_count': 1}, ['unknown tensors blk.1.attn_k.bias']),
  ('qwen3', {'feed_forward_length': 48},
   ['of other shapes blk.0.ffn_down.weight (32, 40), not (32, 48)']),
])  # fmt: skip
def test_what_is_not_mapped_is_named(tmp_path, name, changes, parts):
  said = refusal(write_case(tmp_path / 'a.gguf', name, **changes))
  assert all(part in said for part in ('a.gguf', *parts)), said


def test_another_architecture_is_refused(tmp_path):
  _, made = tensors(CASES['llama3'])
  for kind in ('gemma2', 'gpt2'):
    said = refusal(write(tmp_path / 'g.gguf', kind, {}, made))
    assert said.startswith(f"g.gguf holds a '{kind}' model; of GGUF only llama")
    assert said.endswith('folder with config.json and safetensors')


def test_a_damaged_file_is_named(whole):
  content = whole.read_bytes()
  for part in (b'', content[:3], content[:100], content[:-999], b'text' * 99):
    whole.write_bytes(part)
    with pytest.raises(DataError, match=r'cut\.gguf is not a whole GGUF file'):
      GGUFModel(whole)


def test_lengths_and_types_that_are_none(whole):
  """Each place of the header in turn is a huge number: never a traceback."""
  content = whole.read_bytes()
  first = content.index(b'token_embd.weight') - 8
  for at in range(4, first + 57, 4):
    whole.write_bytes(content[:at] + b'\xee' * 4 + content[at + 4 :])
    try:
      GGUFModel(whole).config()
    except DataError as error:
      assert '\n' not in str(error) and 'cut.gguf' in str(error)
  kind = first + 8 + 17 + 4 + 16
  whole.write_bytes(content[:kind] + b'\xee\0\0\0' + content[kind + 4 :])
  with pytest.raises(DataError, match='tensors of a type that gguf does not'):
    GGUFModel(whole)


def test_a_part_of_a_split_file_is_named(tmp_path):
  with pytest.raises(DataError, match='is one of 3 parts .*-split --merge'):
    write(tmp_path / 'm.gguf', 'llama', {}, {}, whole={'split.count': 3})


def test_another_file_or_a_folder_is_named(tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(b'\x80\0\0\0\0\0\0\0{"__metadata__"' + b' ' * 200)
  with pytest.raises(DataError, match='in safetensors its folder is given'):
    GGUFModel(path)
  with pytest.raises(DataError, match=r'cannot be read \(Is a directory\)'):
    GGUFModel(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path):
  kind, made = tensors(CASES['llama3'])
  made['blk.1.ffn_up.weight'][3, 4] = np.inf
  keys = metadata(CASES['llama3'])
  said = refusal(write(tmp_path / 't.gguf', kind, keys, made))
  assert 'infinite numbers in blk.1.ffn_up.weight' in said


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
  (ids,) = open_plain_tokenizer(smollm2()).encode([inspect.getdoc(np)])
  ids = np.asarray(ids)[None, :256]

  @jax.jit
  def nats(params):
    read = ids[:, :-1]
    x = lm.hidden(
      config, params, read, jnp.ones_like(read), jnp.arange(255)[None]
    )
    return linear_token_stats(
      x, LinearHead(params['embed_VxD']), ids[:, 1:], wants=()
    ).nll.mean()

  # Measured 3.09, and 5.61 with query and key in the order of the file.
  assert nats(params) < 3.3
  assert nats(with_interleaved_heads(params)) > 4.5
