"""How long outputs are, and how many are finished or empty."""

from pdl_jax.evaluate.registry import Found, Inputs, Metric, register


@register(
  Metric(
    'length_ratio', 'Length ratio', unit='words',
    sums=('words', 'target_words'), rows='always',
    definition='whitespace words generated / whitespace words in the targets '
    '(references[0]), both summed over the corpus; n is the targets',
  ),
  Metric(
    'finish_rate', 'Finish rate (%)', 'higher', 1, 100, unit='outputs',
    sums=('finished', 'outputs'),
    definition='share in [0, 1] of outputs that ended with a stop token '
    'rather than at max_new_tokens',
  ),
  Metric(
    'empty_rate', 'Empty outputs (%)', 'lower', 1, 100, unit='outputs',
    sums=('empty', 'outputs'),
    definition='share in [0, 1] of outputs without a whitespace word',
  ),
)  # fmt: skip
def lengths(inputs: Inputs) -> Found:
  """Counts words, and finds finished and empty outputs."""
  records = inputs.records
  words = [len(record['text'].split()) for record in records]
  found = {
    'outputs': [1] * len(records),
    'words': words,
    'target_words': [len(r['references'][0].split()) for r in records],
    'empty': [int(not n) for n in words],
  }
  if not inputs.windows:
    found['finished'] = [int(r['finish_reason'] == 'stop') for r in records]
  return found
