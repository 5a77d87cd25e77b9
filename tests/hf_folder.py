"""Folders as Hugging Face tools leave them, of the models in golden/hf.json."""

import json
from pathlib import Path

from pdl_jax.pretrained import safetensors
from tests.hf_weights import weights

GOLDEN = Path(__file__).parent / 'golden'
# config.json, and shapes of the tensors by name, of each model.
CASES = json.loads((GOLDEN / 'hf.json').read_text('utf-8'))


def write(path, config, tensors):
  """A folder with one file of tensors."""
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(config), 'utf-8')
  safetensors.write_file(path / 'model.safetensors', tensors)
  return path


def write_case(path, name, without=(), **changes):
  """One of the cases; changes are of config.json."""
  tensors = weights(CASES[name])
  tensors = {n: x for n, x in tensors.items() if n not in without}
  return write(path, CASES[name]['config'] | changes, tensors)
