"""What a run starts from: model, splits, frequencies, and the loss's tables."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdl_jax.config import Settings
from pdl_jax.data import pipeline, sources
from pdl_jax.data.examples import Examples, Pairs, Rows
from pdl_jax.data.packing import Documents, Packed, Windows
from pdl_jax.data.pipeline import Survey
from pdl_jax.data.sources import Source
from pdl_jax.data.tasks import TASKS
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import ConfigError, DataError, printable
from pdl_jax.evaluate.style import StyleClassifier
from pdl_jax.generate import DecodeSettings
from pdl_jax.losses import LossTables, frequency
from pdl_jax.losses.frequency import FrequencyTable
from pdl_jax.model import kernels
from pdl_jax.run import fit_head, loss_tables, slow_data, summary
from pdl_jax.run.head_report import report_head
from pdl_jax.run.load_model import load_model, outline
from pdl_jax.run.loss_tables import Frequencies
from pdl_jax.run.open_model import Model
from pdl_jax.run_claim import begun
from pdl_jax.run_folder import RunFolder

# Texts that the style classifier is trained on, and tested on.
_STYLE_RECORDS, _STYLE_CHECKS = 20_000, 2000
# File in the run folder with the splits as they were when the run began.
DATA = 'data.json'


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of the data.

  Attributes:
    seen: which records are usable, and the counts of their targets.
    examples: what is scored and generated from.
  """

  source: Source
  seen: Survey
  examples: Examples


@dataclasses.dataclass(frozen=True)
class Setup:
  """Model, splits (`held_out` is measured), frequencies and tables of a run."""

  model: Model
  train: Split
  validation: Split
  held_out: Split
  frequencies: Frequencies
  tables: LossTables

  def training_rows(self) -> Rows:
    """Returns what batches are drawn from: padded pairs or packed documents."""
    examples, sizes = self.train.examples, self.train.seen.sizes
    if not isinstance(examples, Windows):
      return examples
    return Packed(examples.documents, sizes, examples.lengths)


def prepare(
  settings: Settings, folder: RunFolder | None, *, weights: bool = True
) -> Setup:
  """Loads model and data, counts types, and prints what it found.

  The folder keeps the counts, and a tokenizer that is trained here. Without
  `weights`, parameters may be shapes alone.
  """
  names = dict.fromkeys(('train', 'validation', settings.evaluate.split))
  found = {name: load_source(settings, name) for name in names}
  if settings.data.name not in sources.TEXTS:
    # Packaged data sets are split by group, as their tests assert.
    sources.check_disjoint(list(found.values()))
  for told in sources.remarks(list(found.values())):
    print(printable(told))
  train_source = found['train']
  if weights:
    model = load_model(settings, folder, train_source)
  else:
    model = outline(settings, train_source)
  tokenizer = model.tokenizer
  size = sum(
    x.size for x in jax.tree.leaves(model.params)
    if jnp.issubdtype(x.dtype, jnp.floating)
  )  # fmt: skip
  print(f'model      {printable(model.name)}: {size:,} parameters')
  length = settings.data.lengths.sequence
  print(f'attention  {kernels.chosen(model.config, length)}, {length} tokens')
  print(f'tokenizer  {printable(tokenizer.name)}: {tokenizer.ends()}')
  check_fits(settings, model, settings.decode)
  splits = {
    name: open_split(settings, source, tokenizer)
    for name, source in found.items()
  }
  for told in _never_read(found.values()):
    print(told)
  if folder is not None:
    _keep_data(splits, folder)
  train = splits['train']
  frequencies = find_frequencies(settings, folder, train, tokenizer)
  counts_V = frequencies.task.counts_V
  if weights and settings.model.output is not None:
    moments = fit_head.measure_moments(model, train.examples)
    model = fit_head.fit_head(
      settings.model, model, counts_V, moments, settings.seed
    )
    report_head(folder, model.config, model.params, tokenizer, counts_V)
  loss, used = settings.loss, frequencies.used.fingerprint[:8]
  tables = loss_tables.make_tables(loss, frequencies, tokenizer.special_ids)
  print(f'loss       {summary.loss_name(loss)} (table {used})')
  if loss.spec.weights is not None:
    table = frequencies.task
    print(loss_tables.describe(tables.weights_V, table, tokenizer))
  return Setup(
    model, train, splits['validation'], splits[settings.evaluate.split],
    frequencies, tables,
  )  # fmt: skip


def _never_read(found: Iterable[Source]) -> Iterator[str]:
  """Yields lines that count what splits drop before anything is read."""
  splits: dict[str, list[str]] = {}
  for source in found:
    dropped = source.metadata.get('dropped') or {}
    told = ', '.join(f'{count} {why}' for why, count in dropped.items())
    splits.setdefault(told, []).append(source.split)
  for told, names in splits.items():
    if told:
      yield f'not read   {told} ({", ".join(names)})'


def _keep_data(splits: Mapping[str, Split], folder: RunFolder) -> None:
  """Records the data that a run begins with; DataError if it has changed."""
  now = {
    name: f'{len(split.seen.usable)} records ({split.seen.digest[:16]})'
    for name, split in splits.items()
  }
  if begun(folder.path) and (folder.path / DATA).exists():
    before = folder.read(DATA, dict[str, str])
    changed = [
      f'{name} was {before[name]} and is {text}'
      for name, text in now.items()
      if before.get(name, text) != text
    ]
    if changed:
      raise DataError(
        f'the data has changed since the run in {folder.path} began: '
        f'{", ".join(changed)}; put it back as it was, its order too, or '
        'choose another --workdir'
      )
  elif not folder.finished:
    folder.write(DATA, now)


def load_source(settings: Settings, split: str) -> Source:
  """Loads one split of the configured data set."""
  data = settings.data
  return sources.load(
    data.name, split, data.data_dir or None, fields=data.fields,
    splits=data.splits, bad_records=data.bad_records,
  )  # fmt: skip


def open_split(
  settings: Settings, source: Source, tokenizer: Tokenizer
) -> Split:
  """Scans a split, and prints how many records are usable."""
  task, lengths = TASKS[settings.data.task], settings.data.lengths
  limit = settings.data.train_limit if source.split == 'train' else 0
  seen = slow_data.survey(source, task, tokenizer, lengths, limit)
  print(f'{source.split:10s} {seen.describe()}')
  if task.documents:
    documents = Documents(source, seen.usable, tokenizer)
    examples = Windows(documents, seen.sizes, lengths)
  else:
    examples = Pairs(source, seen.usable, task, tokenizer, lengths)
  return Split(source, seen, examples)


def check_fits(
  settings: Settings, model: Model, decode: DecodeSettings
) -> None:
  """Refuses a loss that the head cannot have, and texts beyond the context."""
  on_logits = settings.loss.spec.on_logits is not None
  if on_logits and model.config.head.kind == 'adaptive':
    raise ConfigError(
      f'loss.name {settings.loss.name} needs an output row for each type, and '
      'model.head adaptive has none; take another head, or another loss'
    )
  lengths = settings.data.lengths
  new = max(lengths.target, decode.max_new_tokens)
  if lengths.prompt + new - 1 > model.config.context:
    raise ConfigError(
      f'data.max_prompt {lengths.prompt} and {new} tokens more (the larger of '
      'data.max_target and decode.max_new_tokens) do not fit the context of '
      f'{model.name}, {model.config.context} tokens'
    )


def find_frequencies(
  settings: Settings,
  folder: RunFolder | None,
  train: Split,
  tokenizer: Tokenizer,
) -> Frequencies:
  """Counts types or reads a stored table; the run folder keeps the task's."""
  loss, vocab_size = settings.loss, tokenizer.vocab_size
  stored = partial(
    frequency.load, tokenizer=tokenizer.fingerprint,
    tokenizer_name=tokenizer.name, vocab_size=vocab_size,
  )  # fmt: skip
  if loss.frequency_table:
    table = stored(Path(loss.frequency_table))
  else:
    source = train.source
    table = FrequencyTable(
      train.seen.counts_V, tokenizer.fingerprint, tokenizer.name,
      source.fingerprint, source.name, source.split,
    )  # fmt: skip
  if folder is not None:
    _keep(table, folder)
  used, words_V = table, None
  if loss.background_table:
    general = stored(Path(loss.background_table))
    used = frequency.mix(table, general, loss.background_weight)
  if loss.name == 'power_law' and loss.level == 'word':
    targets = pipeline.target_texts(train.source, train.seen)
    words = (w for texts in targets for w in tokenizer.encode_words(texts))
    words_V = frequency.word_level(words, vocab_size)
  return Frequencies(table, used, words_V)


def _keep(table: FrequencyTable, folder: RunFolder) -> None:
  """Saves the table; DataError if a finished run had another."""
  path = folder.path / 'frequency.npz'
  if folder.finished:
    before = frequency.read(path)
    same = np.array_equal(before.counts_V, table.counts_V)
    if before.data != table.data or not same:
      raise DataError(
        f'{table.data_name} has changed since the run in {folder.path}: '
        f'{before.total} training target tokens of {before.data[:8]} there, '
        f'{table.total} of {table.data[:8]} now; nothing new can be compared '
        'with that run'
      )
    return
  if folder.writes:
    table.save(path)


def drawn_examples(settings: Settings, ready: Setup) -> np.ndarray:
  """Draws the numbers of the held-out examples that a run is measured on."""
  examples, asked = ready.held_out.examples, settings.evaluate
  return pipeline.sample(examples, asked.examples, asked.sample_index)


def metric_options(settings: Settings) -> dict[str, Any]:
  """Returns what `evaluate.run.evaluate` has to know about the task."""
  task = TASKS[settings.data.task]
  classifier = _style_classifier(settings) if any(task.instructions) else None
  return {
    'classifier': classifier, 'dialogue': task.turns, 'windows': task.documents
  }  # fmt: skip


def _style_classifier(settings: Settings) -> StyleClassifier:
  """Trains on training targets, tests on validation."""
  train, held_out = (load_source(settings, s) for s in ('train', 'validation'))
  classifier = StyleClassifier.fit(
    *_styled(train, _STYLE_RECORDS), name=f'{train.name}/{train.split}'
  )
  return classifier.tested(*_styled(held_out, _STYLE_CHECKS))


def _styled(source: Source, most: int) -> tuple[list[str], list[str]]:
  records = [source[int(number)] for number in pipeline.sample(source, most)]
  return [r['target'] for r in records], [r['style'] for r in records]
