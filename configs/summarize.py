"""Summarize API documentation: the first sentence of a text from the rest.

Source: PDL is arXiv:2505.16900; the texts are inside the package botocore and
built as XSum is (arXiv:1808.08745); whole families of services are held out.
Command: python launch.py --config=configs/summarize.py
Cost: 1,311 s on two busy cores (SmolLM2-135M, 60 steps).
Result with data.buckets 1 on 96 test documents (experiments/smollm2, one
seed): ROUGE-L 29.2 and perplexity 17.1; cross-entropy 28.7 and 15.4; before
training 19.4 and 30.5.
Alpha 0.25 was chosen on validation for the references' share of rare tokens;
for ROUGE alone it would be cross-entropy (experiments/choose_alpha).
Debian's package synopses are harder: make debian, --config.data.name=debian.
"""

from ml_collections import ConfigDict

from configs import base

MODES = base.MODES
sweep_alpha, sweep_epsilon = base.sweep_alpha, base.sweep_epsilon
sweep_loss, sweep_data = base.sweep_loss, base.sweep_data
sweep_seed = base.sweep_seed


def get_config(mode: str = 'default') -> ConfigDict:
  """The configuration of a mode: default, tiny, small or full."""
  return base.get_config(mode)
