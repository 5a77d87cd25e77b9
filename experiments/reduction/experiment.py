"""What do the reduction and the scale of the weights change?

Sum, token mean, weighted mean, and weights scaled to a corpus mean of 1 or
not; one denominator for the whole batch, or four micro-batches of it.

  python launch.py --sweep=experiments/reduction     # what is missing
  python launch.py report experiments/reduction      # from records.jsonl alone
"""

from experiments import small
from pdl_jax.report.declare import Experiment, Variant
from pdl_jax.report.layout import Curves

ALPHA = 0.5
REDUCTIONS = ('weighted_mean', 'token_mean', 'sum')


def variants() -> tuple[Variant, ...]:
  """Cross-entropy, and PDL reduced and scaled in every way."""
  found = [Variant('cross-entropy', small.CROSS_ENTROPY)]
  for reduction in REDUCTIONS:
    for normalize in ('corpus_mean', 'none'):
      scaled = 'corpus mean 1' if normalize == 'corpus_mean' else 'unscaled'
      found.append(Variant(f'{reduction.replace("_", " ")}, {scaled}', {
        'loss.alpha': ALPHA, 'loss.reduction': reduction,
        'loss.normalize': normalize,
      }))  # fmt: skip
  micro = {'loss.alpha': ALPHA, 'optimizer.grad_accum_steps': 4}
  return (*found, Variant('weighted mean, four micro-batches', micro))


EXPERIMENT = Experiment(
  question='Does it matter how weighted losses are summed and scaled?',
  studies=(
    small.study(
      'debian', 'Synopses of Debian packages', variants(),
      baseline='weighted mean, corpus mean 1',
    ),
  ),
  figures=(Curves(),),
)  # fmt: skip
