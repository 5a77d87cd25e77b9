"""Answer in a friendly chat: the next turn from the last four.

Fine-tunes SmolLM2-135M-Instruct with Power-Law Decay Loss (arXiv:2505.16900)
on the human conversations of the package chitchat-dataset; conversations held
out whole.

  python launch.py --config=configs/dialogue.py
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
  config.data.name = 'chitchat'
  config.data.task = 'dialogue'
  if mode == 'default':
    config.evaluate.examples = 64
  return config
