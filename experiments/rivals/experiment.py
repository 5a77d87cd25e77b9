"""Do the rivals of PDL do better, at their defaults and when tuned?

Every loss at its published defaults, with three seeds on the test split; and
three values of each one's own constant with one seed on the validation split;
that with the highest ROUGE-L there then has three seeds on the test split.
Synopses of Debian's packages.

  python launch.py --sweep=experiments/rivals     # what is missing
  python launch.py report experiments/rivals      # from records.jsonl alone
"""

from collections.abc import Mapping, Sequence

from experiments import small
from pdl_jax.losses import LOSSES
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import ByCount, Frontier

# The same budget for each: three values, the default among them.
VALUES = {
  'power_law.alpha': (0.1, 0.25, 0.5),
  'inverse_frequency.exponent': (0.2, 0.4, 0.6),
  'class_balanced.beta': (0.999, 0.9999, 0.99999),
  'adaptive_exponential.decay': (1.0, 1.75, 3.0),
  'adaptive_chi_square.decay': (1.0, 1.75, 3.0),
  'logit_adjustment.tau': (0.25, 0.5, 1.0),
  'focal.gamma': (0.5, 1.0, 2.0),
  'mile.gamma': (0.5, 1.0, 2.0),
  'mixce.eta': (0.25, 0.5, 0.75),
  'gem.beta': (0.5, 0.7, 0.9),
  'unlikelihood.alpha': (0.3, 1.0, 3.0),
  'scale_grad.gamma': (0.2, 0.5, 0.8),
}
# Of these the one with the highest ROUGE-L in the study "tuning".
CHOSEN = {
  'power_law.alpha': 0.1,
  'inverse_frequency.exponent': 0.2,
  'class_balanced.beta': 0.999,
  'adaptive_exponential.decay': 1.0,
  'adaptive_chi_square.decay': 3.0,
  'logit_adjustment.tau': 0.25,
  'focal.gamma': 0.5,
  'mile.gamma': 0.5,
  'mixce.eta': 0.25,
  'gem.beta': 0.7,
  'unlikelihood.alpha': 3.0,
  'scale_grad.gamma': 0.2,
}
CROSS_ENTROPY = Variant('cross_entropy', small.CROSS_ENTROPY)


def defaults() -> tuple[Variant, ...]:
  """Every loss of the registry."""
  rivals = [name for name in LOSSES if name != 'cross_entropy']
  return (
    CROSS_ENTROPY, *(Variant(name, {'loss.name': name}) for name in rivals)
  )  # fmt: skip


def of_constants(
  chosen: Mapping[str, Sequence[float]]
) -> tuple[Variant, ...]:
  """Values of each loss that has a constant, and cross-entropy."""
  found = [CROSS_ENTROPY]
  for key, values in chosen.items():
    loss, constant = key.split('.')
    where = 'loss.alpha' if loss == 'power_law' else f'loss.{key}'
    found += [
      Variant(f'{loss}, {constant} {v:g}', {'loss.name': loss, where: v})
      for v in values
    ]
  return tuple(found)


def study(name: str, title: str, variants: tuple[Variant, ...], split: str,
          seeds: tuple[int, ...], baseline: str) -> Study:  # fmt: skip
  """Variants on one split, against one of them."""
  return small.study(
    name, title, variants, baseline, overrides={'evaluate.split': split},
    seeds=seeds,
  )


EXPERIMENT = Experiment(
  question='Does any loss of the registry beat PDL, or cross-entropy?',
  studies=(
    study('defaults', 'Published defaults, test', defaults(), 'test',
          (0, 1, 2), 'cross_entropy'),
    study('against_pdl', 'The same, against PDL', defaults(), 'test',
          (0, 1, 2), 'power_law'),
    study('tuning', 'Three values each, validation', of_constants(VALUES),
          'validation', (0,), 'cross_entropy'),
    study('tuned', 'Best on validation by ROUGE-L, test',
          of_constants({key: (value,) for key, value in CHOSEN.items()}),
          'test', (0, 1, 2), 'cross_entropy'),
  ),
  figures=(Frontier('distinct_2', 'rougeL'), ByCount()),
)  # fmt: skip
