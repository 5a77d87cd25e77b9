"""Where does the smoothing constant matter at all?

Alpha and epsilon on a grid, in counts and as a share of the running tokens,
on the synopses of Debian's packages.

  python launch.py --sweep=experiments/epsilon     # what is missing
  python launch.py report experiments/epsilon      # from records.jsonl alone
"""

from experiments import small
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import HeatMap

ALPHAS = (0.25, 0.5, 1.0)
EPSILONS = {
  'count': (0.1, 1.0, 10.0, 100.0, 1000.0),
  'probability': (1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
}


def study(unit: str, title: str) -> Study:
  """The grid in one unit, and cross-entropy."""
  grid = tuple(
    Variant(
      f'alpha {alpha:g}, epsilon {epsilon:g}',
      {'loss.alpha': alpha, 'loss.epsilon': epsilon, 'loss.unit': unit},
    )
    for alpha in ALPHAS
    for epsilon in EPSILONS[unit]
  )
  entropy = Variant('cross-entropy', small.CROSS_ENTROPY)
  return small.study(unit, title, (entropy, *grid))


EXPERIMENT = Experiment(
  question='At which alpha and in which unit does epsilon change anything?',
  studies=(
    study('count', 'Epsilon in counts'),
    study('probability', 'Epsilon as a share of the running tokens'),
  ),
  figures=tuple(
    HeatMap('loss.epsilon', 'loss.alpha', key)
    for key in ('perplexity', 'rougeL', 'rare_mass_10')
  ),
)
