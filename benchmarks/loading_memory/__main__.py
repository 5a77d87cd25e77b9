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
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import harness
from pdl_jax.pretrained import safetensors

FOLDER = Path(__file__).parent
CHILD = 'benchmarks.loading_memory.child'
DEVICES, LAYERS, SHARDS = 8, 12, 4
D, F, V = 2048, 5632, 16_384
CONFIG = {
  'architectures': ['LlamaForCausalLM'], 'model_type': 'llama',
  'vocab_size': V, 'hidden_size': D, 'intermediate_size': F,
  'num_hidden_layers': LAYERS, 'num_attention_heads': 16,
  'num_key_value_heads': 8, 'max_position_embeddings': 4096,
  'tie_word_embeddings': True,
}  # fmt: skip
# Name, processes, how it is read.
CASES = (
  ('one process', 1, 'shards'),
  ('two processes', 2, 'shards'),
  ('one process, all of it first', 1, 'whole'),
)


def main() -> None:
  """Measures, and leaves records.jsonl, env.json and table.md."""
  records = []
  with tempfile.TemporaryDirectory() as folder:
    _write(Path(folder))
    for name, processes, how in CASES:
      for found in _load(folder, processes, how):
        records.append({'name': name, **found})
  harness.keep(FOLDER, records, report_files)


def _write(folder: Path) -> None:
  (folder / 'config.json').write_text(json.dumps(CONFIG), 'utf-8')
  shapes: dict[str, tuple[int, ...]] = {
    'model.embed_tokens.weight': (V, D), 'model.norm.weight': (D,),
  }  # fmt: skip
  for i in range(LAYERS):
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


def _load(folder: str, processes: int, how: str) -> list[dict[str, Any]]:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  flag = f'--xla_force_host_platform_device_count={DEVICES // processes}'
  flags = f'{os.environ.get("XLA_FLAGS", "")} {flag}'
  env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  children = [
    subprocess.Popen(
      [sys.executable, '-m', CHILD, folder, how, str(port), str(processes),
       str(number)],
      env=env, stdout=subprocess.PIPE, encoding='utf-8',
    )
    for number in range(processes)
  ]  # fmt: skip
  found = []
  for child in children:
    text, _ = child.communicate()
    if child.returncode:
      raise RuntimeError(f'a process ended with {child.returncode}')
    found.append(json.loads(text.splitlines()[-1]))
  return found


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""
  lines = [
    f'A folder of {records[0]["folder_bytes"] / 1e9:.2f} GB (bf16) on '
    f'{DEVICES} CPU devices in fp32. GB are 1e9 bytes; each process has a row.',
    '', '| read by | its devices keep | peak above that | ratio |',
    '| --- | ---: | ---: | ---: |',
  ]  # fmt: skip
  for record in records:
    kept = record['kept_bytes']
    above = record['peak_bytes'] - record['before_bytes'] - kept
    lines.append(
      f'| {record["name"]} | {kept / 1e9:.2f} GB | {above / 1e9:.2f} GB | '
      f'{above / kept:.2f} |'
    )
  return '\n'.join(lines) + '\n'


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  return {'table.md': table(harness.read(FOLDER))}


if __name__ == '__main__':
  main()
