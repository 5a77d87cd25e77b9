"""Answer in a friendly chat: the next turn from the last four.

Fine-tunes SmolLM2-135M-Instruct with Power-Law Decay Loss (arXiv:2505.16900)
on the human conversations of the package chitchat-dataset; conversations held
out whole.

  python launch.py --config=configs/dialogue.py
"""

from ml_collections import ConfigDict

from configs import common

MODES = common.MODES
sweep_alpha, sweep_epsilon = common.sweep_alpha, common.sweep_epsilon
sweep_loss, sweep_data = common.sweep_loss, common.sweep_data
sweep_seed = common.sweep_seed


def get_config(mode: str = 'default') -> ConfigDict:
  """The configuration of a mode: default, tiny or full."""
  config = common.get_config(mode)
  config.data.name = 'chitchat'
  config.data.task = 'dialogue'
  if mode == 'default':
    config.evaluate.examples = 64
  return config
