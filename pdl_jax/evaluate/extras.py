"""Metrics by optional packages and models that a user brings.

Neither is installed with this project: mauve-text is GPL-3, and both need
torch, transformers and a model of several hundred megabytes.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from pdl_jax.errors import ConfigError, HostError
from pdl_jax.evaluate.inputs import Record
from pdl_jax.evaluate.metric import Metric, mean

# mauve-text loads a folder only if its path has one of these names in it.
_MAUVE_MODELS = ('gpt2', 'bert')


def mauve(records: Sequence[Record], folder: Path) -> dict[str, Metric]:
  """MAUVE of the outputs and the first references, in (0, 1].

  arXiv 2102.01454: how much the two sets of texts overlap as distributions;
  1 is alike. It wants thousands of texts. Texts without a word are left out.

  Args:
    records: prediction records.
    folder: a GPT-2 model in the format of transformers.

  Returns:
    mauve; None where a side has fewer than two texts.

  Raises:
    HostError: mauve-text or something it needs is not installed, or the folder
      does not exist.
    ConfigError: the path of the folder does not say which model it holds.
  """
  package = _import(
    'mauve', 'MAUVE', 'mauve-text torch transformers',
    '; mauve-text is GPL-3, which this project is not',
  )  # fmt: skip
  _check_folder('MAUVE', folder)
  if not any(name in str(folder) for name in _MAUVE_MODELS):
    raise ConfigError(
      f'MAUVE: mauve-text loads no model from {folder}: the path must have '
      f'{" or ".join(_MAUVE_MODELS)} in it; rename the folder'
    )
  outputs = [r['text'] for r in records if r['text'].split()]
  references = [r['references'][0] for r in records]
  references = [text for text in references if text.split()]
  value = None
  if min(len(outputs), len(references)) > 1:
    found = package.compute_mauve(
      p_text=references, q_text=outputs, featurize_model_name=str(folder),
      device_id=-1, verbose=False, seed=25,
    )  # fmt: skip
    value = float(found.mauve)
  return {
    'mauve': Metric(
      value=value,
      n=len(outputs),
      unit='texts',
      definition=f'area in (0, 1] under the divergence curve of outputs and '
      f'{len(references)} references, clustered features of {folder.name}; '
      'texts without a word left out',
      signature=_signature('mauve-text', 'defaults, seed=25'),
    )
  }


def bertscore(records: Sequence[Record], folder: Path) -> dict[str, Metric]:
  """Mean BERTScore F1 over the records (arXiv 1904.09675), not rescaled.

  Against the best reference of each item. The layer is the one that the
  package recommends for the model that the folder is named after.

  Args:
    records: prediction records.
    folder: a model in the format of transformers, as `roberta-large`.

  Raises:
    HostError: bert-score or something it needs is not installed, or the folder
      does not exist.
    ConfigError: the folder is named after no model that the package knows.
  """
  package = _import('bert_score', 'BERTScore', 'bert-score torch transformers')
  _check_folder('BERTScore', folder)
  layers = package.utils.model2layers
  if folder.name not in layers:
    raise ConfigError(
      f'BERTScore: bert-score recommends no layer for {folder.name!r}; name '
      'the folder after its model, such as roberta-large'
    )
  layer = layers[folder.name]
  _, _, f1 = package.score(
    [record['text'] for record in records],
    [list(record['references']) for record in records],
    model_type=str(folder), num_layers=layer, device='cpu',
  )  # fmt: skip
  scores = [float(value) for value in f1]
  return {
    'bertscore_f1': Metric(
      value=mean(scores),
      n=len(scores),
      unit='examples',
      definition='F1 of greedily matched token embeddings, at most 1, best '
      'over the references of an item, mean over items, not rescaled',
      signature=_signature(
        'bert-score', f'{folder.name} layer {layer}, no idf'
      ),
    )
  }


EXTRAS = {'mauve': mauve, 'bertscore': bertscore}


def extra_metrics(
  records: Sequence[Record], folders: Mapping[str, Path]
) -> dict[str, Metric]:
  """The metrics asked for.

  Args:
    records: prediction records.
    folders: name in EXTRAS -> folder of its model.

  Raises:
    ConfigError: a name that is not in EXTRAS; see also each of them.
    HostError: see each of them.
  """
  found: dict[str, Metric] = {}
  for name, folder in folders.items():
    if name not in EXTRAS:
      raise ConfigError(
        f'no extra metric {name!r}; there are {", ".join(EXTRAS)}'
      )
    found |= EXTRAS[name](records, folder)
  return found


def _import(
  module: str, metric: str, packages: str, note: str = ''
) -> ModuleType:
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise HostError(
      f'{metric} was asked for, but the package {error.name} is not installed: '
      f'pip install {packages}{note}'
    ) from error


def _check_folder(metric: str, folder: Path) -> None:
  if not folder.is_dir():
    raise HostError(
      f'{metric}: there is no folder {folder}; download its model there, '
      'nothing is fetched from a hub'
    )


def _signature(package: str, settings: str) -> str:
  return f'{package}=={importlib.metadata.version(package)} {settings}'
