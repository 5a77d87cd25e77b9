"""Makes golden/peft.json and golden/peft.npz: what PEFT computes.

For the environment of make_hf, with peft 0.21.2 besides:

  python -m tests.golden.make_peft

The models are those of golden/hf.json; adapters have the numbers of their
names, too.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import load_file, save_file

from tests import hf_weights
from tests.golden.make_hf import FOLDER, LENGTH, V, configs, filled

# Name, model of make_hf, and what is said of the adapter.
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
  ('plain', 'llama2', {'target_modules': ['q_proj', 'v_proj', 'lm_head']}),
  ('rslora', 'qwen3', {'target_modules': 'all-linear', 'use_rslora': True}),
  ('gpt2', 'gpt2', {
    'target_modules': ['c_attn', 'attn.c_proj', 'c_fc', 'mlp.c_proj'],
    'fan_in_fan_out': True,
  }),
)  # fmt: skip


def origin(name: str) -> str:
  """A copy of a weight of the model has the numbers of that."""
  if not name.endswith('.base_layer.weight'):
    return name
  return name.removeprefix('base_model.model.').replace('.base_layer', '')


def main() -> None:
  """Writes both files."""
  cases, arrays = {}, {}
  tokens = torch.tensor(hf_weights.tokens(V, LENGTH)).long()
  for name, base, says in CASES:
    model, _ = filled(configs()[base])
    config = peft.LoraConfig(
      r=4, lora_alpha=6, task_type='CAUSAL_LM', lora_dropout=0.1, **says
    )
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder)
      peft.get_peft_model(model, config).save_pretrained(path)
      shapes = {
        key: list(x.shape)
        for key, x in load_file(path / 'adapter_model.safetensors').items()
      }
      values = {
        n: torch.tensor(hf_weights.tensor(origin(n), s))
        for n, s in shapes.items()
      }
      save_file(values, path / 'adapter_model.safetensors')
      saved = json.loads((path / 'adapter_config.json').read_text('utf-8'))
      model, _ = filled(configs()[base])
      model = peft.PeftModel.from_pretrained(model, path).eval()
    with torch.no_grad():
      logits = model(tokens).logits[0].numpy()
    cases[name] = {'base': base, 'config': saved, 'shapes': shapes}
    arrays[name] = logits
    print(name, float(np.abs(logits).max()))
  dump = json.dumps(cases, separators=(',', ':'), sort_keys=True)
  (FOLDER / 'peft.json').write_text(dump + '\n', 'utf-8')
  np.savez_compressed(FOLDER / 'peft.npz', **arrays)


if __name__ == '__main__':
  main()
