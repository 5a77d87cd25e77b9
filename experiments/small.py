"""Small models of the wide grids: one base, then every variant from it.

The base, about a million parameters, reads the training text of all tasks as a
language model, with cross-entropy; variants fine-tune it on one task. First

  python -m experiments.corpus
"""

from pdl_jax.report.declare import Start

BASE = Start('configs/language_model.py:small', {
  'data.name': 'jsonl:runs/corpus',
  'data.max_prompt': 96,
  'data.max_target': 64,
  'loss.name': 'cross_entropy',
  'optimizer.learning_rate': 3e-3,
  'optimizer.warmup_steps': 100,
  'train.steps': 3000,
  'train.checkpoint_every': 500,
  'evaluate.examples': 64,
})  # fmt: skip
