"""What a run ends with: the proof of its loss, the tables, some examples."""

import dataclasses
import textwrap
import zlib
from typing import Any

import numpy as np

from pdl_jax import frequency
from pdl_jax.evaluate import run as evaluation
from pdl_jax.losses import LOSSES, LossTables
from pdl_jax.settings import LossSettings
from pdl_jax.weighting import Frequencies

EXAMPLES_SHOWN = 3


def loss_name(loss: LossSettings) -> str:
  """The loss with what tells it from others of the same name."""
  parts = [loss.name]
  if loss.name == 'power_law':
    parts += [f'alpha={loss.alpha:g}', f'epsilon={loss.epsilon:g}']
  own = loss.rivals.get(loss.name, {})
  parts += [
    f'{key}={value:g}' if isinstance(value, float | int) else f'{key}={value}'
    for key, value in own.items()
  ]
  unusual = (
    ('epsilon_policy', 'absolute'), ('unit', 'count'), ('level', 'token'),
    ('clip', 0), ('normalize', 'corpus_mean'), ('unseen', 'as_once'),
    ('label_smoothing', 0), ('z_loss', 0), ('reduction', 'weighted_mean'),
    ('schedule', 'constant'), ('schedule_start', 0), ('schedule_steps', 0),
    ('general_share', 0),
  )  # fmt: skip
  parts += [
    f'{key}={getattr(loss, key)}'
    for key, usual in unusual
    if key in LOSSES[loss.name].read and getattr(loss, key) != usual
  ]
  return ' '.join(parts)


def loss_record(
  settings: LossSettings, frequencies: Frequencies, tables: LossTables
) -> dict[str, Any]:
  """Proof of what was trained: the name alone would not be."""
  weights, table = np.asarray(tables.weights_V), frequencies.task
  read = LOSSES[settings.name].read
  loss = {k: v for k, v in dataclasses.asdict(settings).items() if k in read}
  own = settings.rivals.get(settings.name, {})
  crc32 = lambda x: f'{zlib.crc32(np.asarray(x).tobytes()):08x}'  # noqa: E731
  return {
    **loss,
    'settings': own,
    'weights_crc32': crc32(weights),
    'bias_crc32': None if tables.bias_V is None else crc32(tables.bias_V),
    'frequency_table_fingerprint': frequencies.used.fingerprint,
    'effective_sample_size': frequency.effective_sample_size(
      table.counts_V, weights
    ),
  }


def shown(before: list[dict], after: list[dict]) -> list[dict[str, str]]:
  """The first few examples of the sample: not chosen by hand."""
  return [
    {
      'source': a['source'],
      'reference': a['references'][0],
      'before': b['text'],
      'after': a['text'],
    }
    for b, a in zip(before[:EXAMPLES_SHOWN], after, strict=False)
  ]


def tables(results: dict[str, Any]) -> str:
  """Both tables as Markdown."""
  return (
    f'{evaluation.format_table(results["columns"])}\n'
    f'{evaluation.format_frequency_table(results["columns"])}'
  )


def print_results(results: dict[str, Any]) -> None:
  """What the terminal ends with: the tables, then a few examples."""
  print(f'\n{results["split"]}, {results["steps"]} steps\n')
  print(tables(results))
  for number, example in enumerate(results['examples'], start=1):
    print(f'example {number}')
    for name in ('source', 'reference', 'before', 'after'):
      text = textwrap.shorten(example[name], 400) or '(nothing)'
      print(textwrap.indent(textwrap.fill(f'{name:10s}{text}', 78), '  '))
