"""How much host memory does loading a Hugging Face folder take?

  python -m benchmarks.loading_memory
"""

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
from pdl_jax.model.config import ModelConfig
from pdl_jax.pretrained import hf_write
from pdl_jax.pretrained.huggingface import HFModel

DEVICES, LAYERS, SHARD_BYTES = 8, 12, 310_000_000
# Name, processes, how it is read.
CASES = (
  ('one process', 1, 'shards'),
  ('two processes', 2, 'shards'),
  ('one process, all of it first', 1, 'whole'),
)


def measure(options: harness.Options) -> list[Record]:
  """Measures each process; a tiny model has one layer."""
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
      for found in harness.alone(*cases, env=env):
        records.append({'name': name, **found})
  return records


def _write(folder: Path, layers: int) -> None:
  """Writes a Llama of random numbers in bf16, in four shards."""
  model = ModelConfig(
    vocab_size=16_384, width=2048, layers=layers, heads=16, kv_heads=8,
    head_dim=128, mlp=5632, context=4096,
  )  # fmt: skip
  params = jax.tree.map(
    lambda x: np.asarray(x, ml_dtypes.bfloat16),
    lm.init(model, jax.random.key(0)),
  )
  values = hf_write.config_values(model)
  hf_write.write_model(folder, model, params, values, SHARD_BYTES)


# --- in a process of its own --------------------------------------------------


def anonymous_bytes() -> int:
  """Returns RssAnon of this process."""
  text = Path('/proc/self/status').read_text('utf-8')
  found = re.search(r'RssAnon:\s+(\d+) kB', text)
  assert found is not None
  return 1024 * int(found[1])


class Peak(threading.Thread):
  """Polls the largest `anonymous_bytes` every few milliseconds."""

  def __init__(self):
    super().__init__(daemon=True)
    self.bytes, self.over = 0, False

  def run(self) -> None:
    """Polls until `over` is set."""
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
  # Allocate first what the devices need in any case.
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
  """Formats the records as Markdown."""

  def above(record: Record) -> int:
    return record['peak_bytes'] - record['before_bytes'] - record['kept_bytes']

  made = harness.listed(records, {
    'read by': lambda r: r['name'],
    'its devices keep': lambda r: f'{r["kept_bytes"] / 1e9:.2f} GB',
    'peak above that': lambda r: f'{above(r) / 1e9:.2f} GB',
    'ratio': lambda r: f'{above(r) / r["kept_bytes"]:.2f}',
  })
  return (
    f'A folder of {records[0]["folder_bytes"] / 1e9:.2f} GB (bf16) on '
    f'{DEVICES} CPU devices in fp32. GB are 1e9 bytes; each process has a row.'
    f'\n\n{made}'
  )


if __name__ == '__main__':
  harness.main(__file__, measure, table, measure_case)
