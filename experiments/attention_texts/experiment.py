"""Is what CMHA gives on the texts of all tasks true of each kind of them?

  python -m experiments.corpus
  python launch.py --sweep=experiments/complexformer
  python -m experiments.attention_texts.experiment

Most test tokens of that corpus are speeches: each of a hundred documents is one
at most, and the speeches are long. So the models trained on it are measured
here on as many test tokens of each kind of text: documents in an order that is
drawn once, read in pieces of 128 tokens until there are enough.
"""

import random
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from experiments import corpus
from experiments.attention_length.experiment import (
  finished,
  losses,
  model_of,
)
from experiments.complexformer.experiment import (
  COMPLEX,
  PUBLISHED,
  ROPE,
  ZERO,
)
from pdl_jax.run.load_model import Model

FOLDER = Path(__file__).parent
STUDIES = ('mixed', 'published_mixed')
ROWS = (ROPE, COMPLEX, PUBLISHED.label, ZERO.label)
TOKENS, LENGTH, BATCH = 16_384, 128, 64
SHOWN = {
  'botocore': 'API documentation', 'debian': 'Debian synopses',
  'chitchat': 'dialogue', 'bible': 'Bible', 'sotu_interleaved': 'speeches',
}  # fmt: skip
SPEECHES = 'sotu_interleaved'


def main() -> None:
  """Measures every finished run; leaves records.jsonl and what follows."""
  texts = {name: _texts(name) for name in corpus.NAMES}
  records = []
  for label, seed, run in finished(STUDIES, ROWS):
    model = model_of(run)
    for name, found in texts.items():
      nats = _nats(model, found)
      records.append({
        'row': label, 'seed': seed, 'text': name, 'tokens': nats.size,
        'nats_per_token': float(nats.mean()),
      })  # fmt: skip
      print(records[-1], flush=True)
  harness.keep(FOLDER, records, table)


def _texts(name: str) -> list[str]:
  found = [record['target'] for record in corpus.documents(name, 'test', None)]
  random.Random(0).shuffle(found)
  return found


def _nats(model: Model, texts: list[str]) -> np.ndarray:
  """Of the first TOKENS tokens that have one before them."""
  run = jax.jit(partial(losses, model.config))
  pieces, count = [], 0
  for text in texts:
    (ids,) = model.tokenizer.encode([text.strip()])
    for first in range(0, len(ids) - 1, LENGTH):
      # A label more than inputs.
      pieces.append(ids[first : first + LENGTH + 1])
      count += len(pieces[-1]) - 1
    if count >= TOKENS:
      break
  found = []
  for first in range(0, len(pieces), BATCH):
    some = pieces[first : first + BATCH]
    # Padding follows: no token of a piece reads it.
    padded = np.zeros((BATCH, LENGTH + 1), np.int32)
    for row, ids in enumerate(some):
      padded[row, : len(ids)] = ids
    nats = np.asarray(run(model.params, padded[:, :-1], padded[:, 1:]))
    found += [nats[row, : len(ids) - 1] for row, ids in enumerate(some)]
  return np.concatenate(found)[:TOKENS]


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""
  found = {
    (record['row'], record['seed'], record['text']): record['nats_per_token']
    for record in records
  }
  seeds = sorted({record['seed'] for record in records})
  others = [name for name in corpus.NAMES if name != SPEECHES]
  columns = {
    **{SHOWN[name]: [name] for name in (*others, SPEECHES)},
    'all but speeches': others,
  }

  def mean(row: str, seed: int, names: list[str]) -> float:
    return float(np.mean([found[row, seed, name] for name in names]))

  tokens = min(record['tokens'] for record in records)
  text = (
    f'Models trained on the texts of all tasks, {tokens:,} test tokens of each '
    f'kind; {len(seeds)} paired seeds. Perplexity of {ROPE} (mean over seeds), '
    f'and the others minus {ROPE} in nats a token (mean, 95 % t interval over '
    'seeds; that of other texts of a kind is not in it). The last column is '
    'the mean of the four kinds before the speeches.\n\n'
  )
  cells = [
    f'{np.mean(np.exp([mean(ROPE, seed, names) for seed in seeds])):.1f}'
    for names in columns.values()
  ]
  rows = [(f'{ROPE}, perplexity', *cells)]
  rows += [
    (row, *(
      harness.mean_interval(
        [mean(row, s, names) - mean(ROPE, s, names) for s in seeds]
      ) for names in columns.values()
    ))
    for row in ROWS[1:]
  ]  # fmt: skip
  return text + harness.markdown(('attention', *columns), rows)


if __name__ == '__main__':
  main()
