"""Answer in a friendly chat: the next turn from the last four.

Source: PDL is arXiv:2505.16900; the texts are the human conversations of the
package chitchat-dataset, with whole conversations held out.
Command: python launch.py --config=configs/dialogue.py
Cost: 378 s on two nearly idle cores (SmolLM2-135M, 60 steps).
Result with data.buckets 1 on 64 test examples (experiments/smollm2, one seed):
perplexity 64.9 and 9.7 % rare tokens; cross-entropy 58.1 and 4.6 %; the
references have 11.1 %.
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
  config.data.name = 'chitchat'
  config.data.task = 'dialogue'
  if mode == 'default':
    config.evaluate.examples = 64
  return config
