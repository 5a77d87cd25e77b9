"""How does what is generated change with alpha, on every task?

One model of a million parameters, pretrained on the training text of all tasks
with cross-entropy, then fine-tuned with each alpha from that one checkpoint.

  python -m experiments.corpus                   # once: text for the base
  python launch.py --sweep=experiments/alpha     # what is missing
  python launch.py report experiments/alpha      # from records.jsonl alone
"""

from configs import base
from experiments import metrics, small
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import ByCount, Curves, Frontier, Line

VARIANTS = tuple(
  Variant(f'alpha {overrides["loss.alpha"]:g}', overrides)
  for overrides in base.sweep_alpha()
)


def study(name: str, title: str, data: str, *more: str) -> Study:
  """Every alpha on one task."""
  columns = (*metrics.QUALITY, *metrics.DIVERSITY, *more)
  return small.study(name, title, VARIANTS, 'alpha 0', data, columns)


EXPERIMENT = Experiment(
  question='How do quality, diversity and rare words change with alpha?',
  studies=(
    study('debian', 'Synopses of Debian packages', 'debian'),
    study('dialogue', 'Dialogue', 'chitchat', 'distinct_responses'),
    study(
      'style_transfer', 'King James to Basic English, and back', 'bible',
      'style_accuracy',
    ),
  ),
  figures=(
    Line('loss.alpha', ('perplexity', 'rougeL', 'rare_f1_10', 'rare_mass_10')),
    Frontier('distinct_2', 'rougeL'),
    ByCount(),
    Curves(),
  ),
)  # fmt: skip
