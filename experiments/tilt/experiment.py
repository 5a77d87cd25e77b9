"""Is there anything in training with PDL that tilted decoding does not give?

Cross-entropy decoded with a tilt (log prior taken off the logits), and PDL
with the opposite one. The runs are those of experiments/alpha.

  python launch.py --sweep=experiments/tilt     # what is missing
  python launch.py report experiments/tilt      # from records.jsonl alone
"""

from collections.abc import Sequence

from experiments import metrics, small
from experiments.small import CROSS_ENTROPY
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import Frontier

ALPHAS = (0.25, 0.5, 1.0)


def variants(alphas: Sequence[float]) -> tuple[Variant, ...]:
  """Trained and decoded, for each alpha, and cross-entropy alone."""
  found = [Variant('cross-entropy', CROSS_ENTROPY)]
  for alpha in alphas:
    pdl = {'loss.alpha': alpha}
    found += [
      Variant(f'PDL {alpha:g}', pdl),
      Variant(f'cross-entropy, tilt {alpha:g}', CROSS_ENTROPY, {'tilt': alpha}),
      Variant(f'PDL {alpha:g}, tilt {-alpha:g}', pdl, {'tilt': -alpha}),
    ]
  return tuple(found)


def study(
  name: str, title: str, data: str, *more: str,
  alphas: Sequence[float] = ALPHAS, baseline: str = 'cross-entropy',
) -> Study:  # fmt: skip
  """All of them on one task."""
  # Perplexity is of the model, whatever the decoding.
  columns = (*metrics.QUALITY[1:], *metrics.DIVERSITY, *more)
  return small.study(name, title, variants(alphas), baseline, data, columns)


EXPERIMENT = Experiment(
  question='Does training with PDL give anything that cross-entropy, decoded '
  'with the opposite tilt, does not?',
  studies=(
    study('debian', 'Synopses of Debian packages', 'debian'),
    study(
      'debian_against_pdl', 'Synopses of Debian packages, against PDL 0.5',
      'debian', alphas=(0.5,), baseline='PDL 0.5',
    ),
    study('dialogue', 'Dialogue', 'chitchat', 'distinct_responses'),
  ),
  figures=(
    Frontier('distinct_2', 'rougeL'), Frontier('rare_mass_10', 'rougeL')
  ),
)  # fmt: skip
