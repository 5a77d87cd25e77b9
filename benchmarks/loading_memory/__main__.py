"""How much host memory does loading a Hugging Face folder take?

  python -m benchmarks.loading_memory

A folder of a Llama with 0.6 billion random numbers in bf16, in four shards, is
loaded to fp32 on eight devices that split it (fsdp): by one process, by two
that keep four devices each, and for comparison by one that reads all of it
first. Devices are CPU devices, so that what they keep is memory of the process,
too: the record has what is above that. Memory is anonymous (RssAnon): pages of
the mapped files are the kernel's to give back.
"""

import json
import os
import re
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from benchmarks import harness
from benchmarks.harness import Record
from pdl_jax.mesh import make_mesh, shardings
from pdl_jax.model import lm
from pdl_jax.pretrained import safetensors
from pdl_jax.pretrained.huggingface import HFModel

FOLDER = Path(__file__).parent
DEVICES, LAYERS, SHARDS = 8, 12, 4
D, F, V = 2048, 5632, 16_384
# Name, processes, how it is read.
CASES = (
  ('one process', 1, 'shards'),
  ('two processes', 2, 'shards'),
  ('one process, all of it first', 1, 'whole'),
)


def measure(options: harness.Options) -> list[Record]:
  """A record of each process; a tiny model has one layer."""
  records = []
  with tempfile.TemporaryDirectory() as folder:
    _write(Path(folder), 1 if options.tiny else LAYERS)
    for name, processes, how in CASES:
      with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
      count = DEVICES // processes
      flags = os.environ['XLA_FLAGS']
      env = {
        'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={count}',
        'JAX_PLATFORMS': 'cpu',
      }
      cases = [
        {'folder': folder, 'how': how, 'port': port, 'processes': processes,
         'number': number}
        for number in range(processes)
      ]  # fmt: skip
      for found in harness.alone(FOLDER, *cases, env=env):
        records.append({'name': name, **found})
  return records


def _write(folder: Path, layers: int) -> None:
  config = {
    'architectures': ['LlamaForCausalLM'], 'model_type': 'llama',
    'vocab_size': V, 'hidden_size': D, 'intermediate_size': F,
    'num_hidden_layers': layers, 'num_attention_heads': 16,
    'num_key_value_heads': 8, 'max_position_embeddings': 4096,
    'tie_word_embeddings': True,
  }  # fmt: skip
  (folder / 'config.json').write_text(json.dumps(config), 'utf-8')
  shapes: dict[str, tuple[int, ...]] = {
    'model.embed_tokens.weight': (V, D), 'model.norm.weight': (D,),
  }  # fmt: skip
  for i in range(layers):
    kv = D // 2
    for name, shape in (
      ('input_layernorm', (D,)), ('post_attention_layernorm', (D,)),
      ('self_attn.q_proj', (D, D)), ('self_attn.k_proj', (kv, D)),
      ('self_attn.v_proj', (kv, D)), ('self_attn.o_proj', (D, D)),
      ('mlp.gate_proj', (F, D)), ('mlp.up_proj', (F, D)),
      ('mlp.down_proj', (D, F)),
    ):  # fmt: skip
      shapes[f'model.layers.{i}.{name}.weight'] = shape
  random, names = np.random.default_rng(0), list(shapes)
  index = {}
  for number in range(SHARDS):
    mine = names[number::SHARDS]
    file = f'model-{number + 1:05d}-of-{SHARDS:05d}.safetensors'
    made = {
      name: random.standard_normal(shapes[name], np.float32)
      .astype(ml_dtypes.bfloat16) for name in mine
    }  # fmt: skip
    safetensors.write_file(folder / file, made)
    index |= dict.fromkeys(mine, file)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index}), 'utf-8'
  )


# --- in a process of its own --------------------------------------------------


def anonymous_bytes() -> int:
  """RssAnon of this process."""
  text = Path('/proc/self/status').read_text('utf-8')
  found = re.search(r'RssAnon:\s+(\d+) kB', text)
  assert found is not None
  return 1024 * int(found[1])


class Peak(threading.Thread):
  """The largest `anonymous_bytes`, looked at every few milliseconds."""

  def __init__(self):
    super().__init__(daemon=True)
    self.bytes, self.over = 0, False

  def run(self) -> None:
    """Looks until it is told that it is over."""
    while not self.over:
      self.bytes = max(self.bytes, anonymous_bytes())
      time.sleep(0.003)


def measure_case(case: dict[str, Any]) -> Record:
  """Loads the folder as one of its processes."""
  processes, how = case['processes'], case['how']
  if processes > 1:
    jax.distributed.initialize(
      f'localhost:{case["port"]}', processes, case['number']
    )
  mesh = make_mesh((1, -1, 1))
  model = HFModel(Path(case['folder']))
  shapes, axes = model.shapes(), lm.logical_axes(model.config())
  places = shardings(mesh, axes, shapes)
  # What the devices need for anything at all is there before.
  jax.block_until_ready(jax.device_put(1.0, mesh.local_devices[0]))
  before, peak = anonymous_bytes(), Peak()
  peak.start()
  if how == 'whole':
    params = jax.device_put(model.params(), places)
  else:
    dtypes = jax.tree.map(lambda x: x.dtype, shapes)
    params = model.placed(places, dtypes)
  jax.block_until_ready(params)
  peak.over = True
  peak.join()
  kept = sum(
    shard.data.nbytes
    for x in jax.tree.leaves(params) for shard in x.addressable_shards
  )  # fmt: skip
  files = Path(case['folder']).glob('*.safetensors')
  return {
    'processes': processes, 'how': how,
    'folder_bytes': sum(file.stat().st_size for file in files),
    'before_bytes': before, 'peak_bytes': peak.bytes,
    'after_bytes': anonymous_bytes(), 'kept_bytes': kept,
    'jax': jax.__version__,
  }  # fmt: skip


# --- tables -------------------------------------------------------------------


def table(records: list[Record]) -> str:
  """The records as Markdown."""
  rows = []
  for record in records:
    kept = record['kept_bytes']
    above = record['peak_bytes'] - record['before_bytes'] - kept
    rows.append((
      record['name'], f'{kept / 1e9:.2f} GB', f'{above / 1e9:.2f} GB',
      f'{above / kept:.2f}',
    ))  # fmt: skip
  headings = ('read by', 'its devices keep', 'peak above that', 'ratio')
  return (
    f'A folder of {records[0]["folder_bytes"] / 1e9:.2f} GB (bf16) on '
    f'{DEVICES} CPU devices in fp32. GB are 1e9 bytes; each process has a row.'
    f'\n\n{harness.markdown(headings, rows)}'
  )


def report_files(folder: Path = FOLDER) -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': table(harness.read(folder))}


if __name__ == '__main__':
  harness.main(FOLDER, measure, report_files, measure_case)
