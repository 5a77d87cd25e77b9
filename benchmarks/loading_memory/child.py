"""One process of `experiment`: loads a folder, and says what it took."""

import json
import re
import sys
import threading
import time
from pathlib import Path

import jax

from pdl_jax.mesh import make_mesh, shardings
from pdl_jax.model import lm
from pdl_jax.pretrained.huggingface import HFModel


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


def main() -> None:
  """Loads, and prints one line of JSON."""
  folder, how, port, processes, number = sys.argv[1:]
  if int(processes) > 1:
    jax.distributed.initialize(
      f'localhost:{port}', int(processes), int(number)
    )
  mesh = make_mesh((1, -1, 1))
  model = HFModel(Path(folder))
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
  files = Path(folder).glob('*.safetensors')
  print(json.dumps({
    'processes': int(processes), 'how': how,
    'folder_bytes': sum(file.stat().st_size for file in files),
    'before_bytes': before, 'peak_bytes': peak.bytes,
    'after_bytes': anonymous_bytes(), 'kept_bytes': kept,
    'jax': jax.__version__,
  }))  # fmt: skip


if __name__ == '__main__':
  main()
