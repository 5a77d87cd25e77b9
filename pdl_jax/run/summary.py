"""What a run ends with: the proof of its loss, the tables, some examples."""

import dataclasses
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdl_jax.errors import printable
from pdl_jax.evaluate import side_by_side
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import LossTables, frequency
from pdl_jax.losses.settings import LossSettings
from pdl_jax.run.loss_tables import Frequencies
from pdl_jax.run_folder import RESULTS

EXAMPLES_SHOWN = 3
# Keys that a loss's name includes if they are not at their defaults.
_UNUSUAL = (
  'epsilon_policy', 'unit', 'level', 'clip', 'normalize', 'unseen',
  'label_smoothing', 'z_loss', 'reduction', 'schedule', 'schedule_start',
  'schedule_steps', 'background_weight',
)  # fmt: skip
# What `print_results` reads from results.json.
SHOWN = RESULTS | {
  'task': str, 'padding_share': float, 'examples': list[dict[str, str]],
}  # fmt: skip


def loss_name(loss: LossSettings) -> str:
  """Names the loss, with what tells it from others of that name."""
  parts, usual = [loss.name], LossSettings()
  if loss.name == 'power_law':
    parts += [f'alpha={loss.alpha:g}', f'epsilon={loss.epsilon:g}']
  parts += [
    f'{key}={value:g}' if isinstance(value, float | int) else f'{key}={value}'
    for key, value in loss.own.items()
  ]
  parts += [
    f'{key}={getattr(loss, key)}'
    for key in _UNUSUAL
    if key in loss.spec.read
    and getattr(loss, key) != getattr(usual, key)
  ]
  return ' '.join(parts)


def decode_name(decode: DecodeSettings) -> str:
  """Names the way of decoding after a space; '' for plain greedy."""
  usual = DecodeSettings(method=decode.method)
  parts = [] if decode.method == 'greedy' else [decode.method]
  parts += [
    f'{field.name}={getattr(decode, field.name)}'
    for field in dataclasses.fields(decode)
    if getattr(decode, field.name) != getattr(usual, field.name)
  ]
  return ''.join(f' {part}' for part in parts)


def padding_share(rows: Sequence[Mapping[str, Any]]) -> float:
  """Share in [0, 1] of positions in logged batches that hold no token."""
  steps = [row for row in rows if 'positions' in row]
  positions = sum(row['positions'] for row in steps)
  return 1 - sum(row['input_tokens'] for row in steps) / positions


def loss_record(
  settings: LossSettings, frequencies: Frequencies, tables: LossTables
) -> dict[str, Any]:
  """Records settings and checksums, which prove what was trained."""
  weights, table = np.asarray(tables.weights_V), frequencies.task
  read = settings.spec.read
  loss = {k: v for k, v in dataclasses.asdict(settings).items() if k in read}
  crc32 = lambda x: f'{zlib.crc32(np.asarray(x).tobytes()):08x}'  # noqa: E731
  return {
    **loss,
    'settings': settings.own,
    'weights_crc32': crc32(weights),
    'bias_crc32': None if tables.bias_V is None else crc32(tables.bias_V),
    'frequency_table_fingerprint': frequencies.used.fingerprint,
    'effective_sample_size': frequency.effective_sample_size(
      table.counts_V, weights
    ),
  }


def shown(before: list[dict], after: list[dict]) -> list[dict[str, str]]:
  """Takes the first few examples of the sample; none is chosen by hand."""
  return [
    {
      'prompt': a['source'] or a['prompt'],
      'reference': a['references'][0],
      'before': b['text'],
      'after': a['text'],
    }
    for b, a in zip(before[:EXAMPLES_SHOWN], after, strict=False)
  ]


def tables(results: dict[str, Any]) -> str:
  """Formats both tables as Markdown, and why a metric has no value."""
  return (
    f'{side_by_side.format_table(results["columns"])}\n'
    f'{side_by_side.format_frequency_table(results["columns"])}'
    f'{side_by_side.format_reasons(results["columns"])}'
  )


def print_results(results: dict[str, Any]) -> None:
  """Prints the tables, then a few examples."""
  split = printable(results['split'])
  print(
    f'\n{results["task"]}, {split}, {results["steps"]} steps, '
    f'{results["padding_share"]:.0%} of the training positions were padding\n'
  )
  print(tables(results))
  for number, example in enumerate(results['examples'], start=1):
    print(f'example {number}')
    for name in ('prompt', 'reference', 'before', 'after'):
      text = example[name].strip().replace('\n', ' | ')
      text = textwrap.shorten(printable(text), 240) or '(nothing)'
      print(textwrap.fill(
        text, 78, initial_indent=f'  {name:10s}', subsequent_indent=' ' * 12
      ))  # fmt: skip
