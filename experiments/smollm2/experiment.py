"""What does Power-Law Decay Loss do to a pretrained model, on every task?

The main job of each config, SmolLM2-135M, with PDL and with cross-entropy.

  python launch.py --sweep=experiments/smollm2     # what is missing
  python launch.py report experiments/smollm2      # from records.jsonl alone
"""

from experiments import metrics
from pdl_jax.report.declare import Experiment, Overrides, Study, Variant
from pdl_jax.report.layout import ByCount, Curves

CROSS_ENTROPY = Variant('cross-entropy', {'loss.name': 'cross_entropy'})
COLUMNS = metrics.QUALITY + metrics.DIVERSITY


def study(
  name: str,
  title: str,
  label: str,
  *more: str,
  config: str = '',
  data: Overrides | None = None,
) -> Study:
  """Both losses on one task, as its config has them; rows of one length."""
  return Study(
    name, title, f'configs/{config or name}.py',
    (CROSS_ENTROPY, Variant(label)), 'cross-entropy', (*COLUMNS, *more),
    {'data.buckets': 1, **(data or {})},
  )  # fmt: skip


EXPERIMENT = Experiment(
  question='What does PDL, as the configs have it, do to SmolLM2-135M on each '
  'task, against cross-entropy?',
  studies=(
    study('summarize', 'Summaries of API documentation', 'PDL, alpha 0.25'),
    study(
      'debian', 'Synopses of Debian packages', 'PDL, alpha 0.25',
      config='summarize', data={'data.name': 'debian'},
    ),
    study('dialogue', 'Dialogue', 'PDL, alpha 0.25', 'distinct_responses'),
    study(
      'style_transfer', 'King James to Basic English, and back',
      'PDL, alpha 0.25', 'style_accuracy',
    ),
    study('language_model', 'Language modelling', 'PDL, alpha 0.1'),
  ),
  figures=(ByCount(), Curves()),
)  # fmt: skip
