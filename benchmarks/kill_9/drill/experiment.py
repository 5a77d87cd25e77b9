"""Four runs of the smallest job, to be killed; see benchmarks/kill_9."""

from experiments import metrics
from pdl_jax.report.declare import Experiment, Study, Variant

EXPERIMENT = Experiment(
  question='Does a sweep survive kill -9?',
  studies=(
    Study(
      'drill', 'Four small runs', 'configs/summarize.py:tiny',
      (
        Variant('cross-entropy', {'loss.alpha': 0.0}),
        Variant('PDL 0.5', {'loss.alpha': 0.5}),
      ),
      baseline='cross-entropy', metrics=metrics.QUALITY,
      overrides={'train.checkpoint_every': 10}, seeds=(0, 1),
    ),
  ),
)  # fmt: skip
