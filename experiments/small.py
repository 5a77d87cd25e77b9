"""Small models of the wide grids: one base, then every variant from it.

The base, about a million parameters, reads the training text of all tasks as a
language model, with cross-entropy; variants fine-tune it on one task. First

  python -m experiments.corpus
"""

from typing import Any

from experiments import metrics
from pdl_jax.report.declare import Overrides, Start, Study, Variant

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
# Power-law decay with alpha 0 is cross-entropy.
CROSS_ENTROPY: Overrides = {'loss.alpha': 0.0}
CONFIGS = {
  'debian': 'summarize', 'chitchat': 'dialogue', 'bible': 'style_transfer'
}  # fmt: skip


def study(
  name: str,
  title: str,
  variants: tuple[Variant, ...],
  baseline: str = 'cross-entropy',
  data: str = 'debian',
  columns: tuple[str, ...] = metrics.QUALITY + metrics.DIVERSITY,
  overrides: Overrides | None = None,
  **more: Any,
) -> Study:
  """Variants of the base on one task; `more` are further fields of a study."""
  return Study(
    name, title, f'configs/{CONFIGS[data]}.py:small', variants, baseline,
    columns, {'data.name': data, **(overrides or {})}, BASE, **more,
  )  # fmt: skip
