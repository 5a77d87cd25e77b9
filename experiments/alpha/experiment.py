"""How does what is generated change with alpha, on every task?

One model of a million parameters, pretrained on the training text of all tasks
with cross-entropy, then fine-tuned with each alpha from that one checkpoint.

  python -m experiments.corpus                   # once: text for the base
  python launch.py --sweep=experiments/alpha     # what is missing
  python launch.py report experiments/alpha      # from records.jsonl alone
"""

from configs import base
from experiments import metrics
from experiments.small import BASE
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import ByCount, Curves, Frontier, Line

VARIANTS = tuple(
  Variant(f'alpha {overrides["loss.alpha"]:g}', overrides)
  for overrides in base.sweep_alpha()
)


def study(
  name: str, title: str, config: str, data: str, *more: str
) -> Study:
  """Every alpha on one task."""
  return Study(
    name, title, f'configs/{config}.py:small', VARIANTS,
    baseline='alpha 0', metrics=(*metrics.QUALITY, *metrics.DIVERSITY, *more),
    overrides={'data.name': data}, base=BASE,
  )  # fmt: skip


EXPERIMENT = Experiment(
  question='How do quality, diversity and rare words change with alpha?',
  studies=(
    study('debian', 'Synopses of Debian packages', 'summarize', 'debian'),
    study('dialogue', 'Dialogue', 'dialogue', 'chitchat', 'distinct_responses'),
    study(
      'style_transfer', 'King James to Basic English, and back',
      'style_transfer', 'bible', 'style_accuracy',
    ),
  ),
  figures=(
    Line('loss.alpha', ('perplexity', 'rougeL', 'rare_f1_10', 'rare_mass_10')),
    Frontier('distinct_2', 'rougeL'),
    ByCount(),
    Curves(),
  ),
)  # fmt: skip
