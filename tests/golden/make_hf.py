"""Makes golden/hf.json and golden/hf.npz: what transformers computes.

For an environment of its own with PyTorch, which pdl_jax never needs (torch,
transformers, numpy; versions in benchmarks/train_step/requirements.txt):

  python -m tests.golden.make_hf

Every model is tiny, has random weights that a test makes again from their
names (tests/hf_weights.py), and is longer than its windows and its original
context.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf

from tests import hf_weights

V, D, LENGTH, NEW = 48, 32, 20, 8
FOLDER = Path(__file__).parent
SHAPE = {
  'vocab_size': V, 'hidden_size': D, 'intermediate_size': 40,
  'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
  'max_position_embeddings': 64, 'bos_token_id': None, 'eos_token_id': None,
  'pad_token_id': None,
}  # fmt: skip
LLAMA3 = {
  'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 8.0,
  'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}  # fmt: skip
YARN = {
  'rope_type': 'yarn', 'rope_theta': 100.0, 'factor': 4.0,
  'original_max_position_embeddings': 16,
}  # fmt: skip
GEMMA = {**SHAPE, 'head_dim': 16, 'query_pre_attn_scalar': 24}


def configs() -> dict[str, Any]:
  """Of each case."""
  window = {'sliding_window': 6}
  return {
    'llama2': tf.LlamaConfig(**SHAPE, tie_word_embeddings=False),
    'llama3': tf.LlamaConfig(
      **SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True
    ),
    'llama_biases_linear': tf.LlamaConfig(
      **SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
      rope_parameters={
        'rope_type': 'linear', 'rope_theta': 10_000.0, 'factor': 2.0
      },
    ),
    'llama_yarn': tf.LlamaConfig(
      **SHAPE, rope_parameters=YARN, tie_word_embeddings=True
    ),
    'mistral': tf.MistralConfig(**SHAPE, **window, head_dim=8),
    'qwen2': tf.Qwen2Config(
      **SHAPE, **window, use_sliding_window=True, max_window_layers=1
    ),
    'qwen2_tied': tf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    'qwen3': tf.Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    'gemma2': tf.Gemma2Config(
      **GEMMA, **window, attn_logit_softcapping=2.0,
      final_logit_softcapping=3.0,
    ),
    'gemma3': tf.Gemma3TextConfig(
      **{**GEMMA, 'num_hidden_layers': 3}, **window,
      layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
      rope_parameters={
        'full_attention': {
          'rope_type': 'linear', 'rope_theta': 1000.0, 'factor': 8.0
        },
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
      },
    ),
    'gpt2': tf.GPT2Config(
      vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=64,
      bos_token_id=None, eos_token_id=None,
    ),
  }  # fmt: skip


def filled(config: Any) -> tuple[Any, dict[str, list[int]]]:
  """A model with the weights of its names, and their shapes."""
  config._attn_implementation = 'eager'
  model = tf.AutoModelForCausalLM.from_config(config).eval().float()
  tied = config.tie_word_embeddings
  shapes = {
    name: list(x.shape)
    for name, x in model.state_dict().items()
    if not (tied and name == 'lm_head.weight')
  }
  values = {n: torch.tensor(hf_weights.tensor(n, s)) for n, s in shapes.items()}
  model.load_state_dict(values, strict=False)
  model.tie_weights()
  return model, shapes


def main() -> None:
  """Writes both files."""
  cases, arrays = {}, {}
  tokens = torch.tensor(hf_weights.tokens(V, LENGTH)).long()
  for name, config in configs().items():
    model, shapes = filled(config)
    with torch.no_grad():
      logits = model(tokens).logits
      greedy = model.generate(
        tokens[:, :9], attention_mask=torch.ones(1, 9), max_new_tokens=NEW,
        do_sample=False,
      )
    values = json.loads(config.to_json_string(use_diff=False))
    values['architectures'] = [type(model).__name__]
    cases[name] = {'config': values, 'shapes': shapes}
    arrays[f'{name}/logits'] = logits[0].numpy()
    arrays[f'{name}/greedy'] = greedy[0, 9:].numpy().astype(np.int32)
    print(name, float(logits.abs().max()), greedy[0, 9:].tolist())
  dump = json.dumps(cases, separators=(',', ':'), sort_keys=True)
  (FOLDER / 'hf.json').write_text(dump + '\n', 'utf-8')
  np.savez_compressed(FOLDER / 'hf.npz', **arrays)


if __name__ == '__main__':
  main()
