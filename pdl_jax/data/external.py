"""Opens data sets that others prepared: TFDS by name, Hugging Face folders."""

import contextlib
import hashlib
import importlib.util
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from pdl_jax.data import parts, schema
from pdl_jax.errors import ConfigError, DataError, HostError, PdlError, reason

if TYPE_CHECKING:
  from tensorflow_datasets.core import DatasetBuilder

# NAME, NAME/CONFIG, NAME:VERSION; NAMESPACE:NAME would use the network.
_TFDS_NAME = re.compile(r'[A-Za-z]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?')

_HUB_NAME = re.compile(r'[\w.-]+(/[\w.-]+)?')


def open_tfds(
  name: str, split: str, data_dir: str | None,
  fields: Mapping[str, str] | None, splits: Mapping[str, str],
) -> schema.Source:  # fmt: skip
  """Opens a split of a TFDS data set that is prepared on this machine."""
  builder = _tfds_builder(name, data_dir)
  place = f', data_dir="{os.path.expanduser(data_dir)}"' if data_dir else ''
  remedy = (
    'prepare it once, where there is a network and TensorFlow: python -c'
    f' \'import tensorflow_datasets as tfds; tfds.builder("{name}"{place})'
    '.download_and_prepare(file_format="array_record")\''
  )
  _check_prepared(name, builder, remedy)
  folder, full_name = str(builder.data_dir), builder.info.full_name
  again = f'delete that folder and {remedy}'
  called = splits.get(split, split)
  with torn_files_named(folder, again):
    records = read_split(f'tfds:{name}', builder, split, splits)
    texts, integers = _stored_fields(builder)
    chosen = schema.resolve_stored(f'tfds:{name}', fields, texts, integers)
    metadata = dict(builder.info.metadata or {})
  size = len(records)
  return schema.Source(
    records=records,
    fields=chosen,
    identity=['tfds', full_name, called, size, sorted(chosen.items())],
    metadata=metadata | {'dataset': full_name, 'split': called, 'kept': size},
    place=folder,
    remedy=again,
  )


@contextlib.contextmanager
def torn_files_named(place: str, remedy: str) -> Iterator[None]:
  """Turns whatever TFDS raises for damaged files into one line."""
  try:
    yield
  except (PdlError, OSError, MemoryError):
    raise
  # Its parsers of JSON and protocol buffers raise many classes.
  except Exception as error:
    raise DataError(
      f'{place} cannot be read ({reason(error)}); {remedy}'
    ) from error


def _tfds_builder(name: str, data_dir: str | None) -> 'DatasetBuilder':
  # The import takes half a second.
  import tensorflow_datasets as tfds

  if not _TFDS_NAME.fullmatch(name):
    raise ConfigError(
      f'tfds:{name} is no name of a data set: write tfds:NAME, NAME/CONFIG, or'
      ' either with :VERSION'
    )
  folder = os.path.expanduser(data_dir) if data_dir else None
  try:
    return tfds.builder(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError as error:
    raise ConfigError(
      f'tfds:{name} is neither a data set that TFDS knows nor prepared in the'
      f' data_dir {folder or "of TFDS (TFDS_DATA_DIR)"}'
    ) from error
  except ImportError as error:
    raise HostError(
      f'the code of tfds:{name} needs {error.name}: pip install {error.name}'
    ) from error
  except OSError:
    raise
  # Torn files and unknown versions fail in assertions and parsers of TFDS.
  except Exception as error:
    raise ConfigError(
      f'tfds:{name} cannot be opened: {reason(error)}'
    ) from error


def _check_prepared(name: str, builder: 'DatasetBuilder', remedy: str) -> None:
  if not builder.info.initialized:
    raise DataError(
      f'tfds:{name} is not prepared in {builder.data_dir}; {remedy}'
    )
  formats = {f.value for f in builder.info.available_file_formats()}
  if formats.isdisjoint(('array_record', 'parquet')):
    raise DataError(
      f'tfds:{name} is prepared in {builder.data_dir} as'
      f' {", ".join(formats)}, which cannot be read by position; delete that'
      f' folder and {remedy}'
    )


def read_split(
  name: str, builder: 'DatasetBuilder', split: str, splits: Mapping[str, str]
) -> schema.Records:
  """Reads a split; refuses some that are missing, empty, or share examples."""
  infos, spans = builder.info.splits, []
  for each in schema.SPLITS:
    if each in {split, *splits, *infos}:
      called = splits.get(each, each)
      spans += [
        (stored, numbers.start, numbers.stop, each, called)
        for stored, numbers in parts.absolute(name, called, lambda: infos, each)
      ]
  for before, after in itertools.pairwise(sorted(spans)):
    if before[0] == after[0] and after[1] < before[2]:
      raise ConfigError(
        f'{name}: {before[3]} ({before[4]!r}) and {after[3]}'
        f' ({after[4]!r}) share examples; name splits that do not overlap,'
        " such as 'train[:95%]' and 'train[95%:]'"
      )
  # The annotations of TFDS lose the parameters.
  read = cast(Callable[..., schema.Records], builder.as_data_source)
  return read(split=splits.get(split, split))


def _stored_fields(
  builder: 'DatasetBuilder',
) -> tuple[list[str], list[str]]:  # names of texts, names of integers
  import tensorflow_datasets as tfds

  features = builder.info.features
  if not isinstance(features, tfds.features.FeaturesDict):
    return [], []
  scalars = {
    field: np.dtype(cast(type, feature.np_dtype))
    for field, feature in features.items()
    if feature.shape == ()
  }
  texts = [field for field, dtype in scalars.items() if dtype.kind == 'O']
  integers = [field for field, dtype in scalars.items() if dtype.kind in 'iu']
  return texts, integers


def open_hf(
  name: str, split: str, folder: str, fields: Mapping[str, str] | None
) -> schema.Source:
  """Opens a split: a subfolder that `datasets` wrote with `save_to_disk`."""
  if importlib.util.find_spec('datasets') is None:
    raise HostError(
      f'{name} needs the package datasets, which is not installed: pip install'
      ' datasets'
    )
  # The import takes a second.
  import datasets

  place = os.path.join(folder, split)
  if os.path.isfile(os.path.join(place, 'dataset_dict.json')):
    raise DataError(f'{place} holds several splits, not one')
  if not os.path.isfile(os.path.join(place, 'state.json')):
    raise DataError(f'{place} cannot be opened: {_instead(name, folder)}')
  empty = DataError(
    f'{name}: split {split} holds no records, {place} no file of any'
  )
  if not any(file.endswith('.arrow') for file in os.listdir(place)):
    raise empty
  try:
    # A saved format may hide columns, or give arrays of other libraries.
    dataset = datasets.Dataset.load_from_disk(place).with_format(None)
    sums = [_sha256(file['filename']) for file in dataset.cache_files]
    # Offsets in a damaged file may point outside it: reading would crash.
    dataset.data.table.validate(full=True)
  except MemoryError:
    raise
  # For torn files `datasets` passes on errors of JSON and Arrow.
  except Exception as error:
    raise DataError(
      f'{place} cannot be opened ({reason(error)}); save it again with'
      ' DatasetDict.save_to_disk'
    ) from error
  if not len(dataset):
    raise empty
  dtypes = {
    field: feature.dtype
    for field, feature in dataset.features.items()
    if isinstance(feature, datasets.Value)
  }
  texts = [f for f, dtype in dtypes.items() if dtype.endswith('string')]
  integers = [f for f, dtype in dtypes.items() if 'int' in dtype]
  chosen = schema.resolve_stored(name, fields, texts, integers)
  used = dataset.select_columns(sorted({*chosen.values()}))
  return schema.Source(
    records=cast(schema.Records, used),
    fields=chosen,
    identity=['hf', *sums, sorted(chosen.items())],
    metadata={'folder': place, 'kept': len(dataset)},
    place=place,
    remedy='save it again, without such records',
  )


def _instead(name: str, folder: str) -> str:
  hub = name.partition(':')[2]
  if not os.path.isdir(folder):
    hub = hub if _HUB_NAME.fullmatch(hub) else 'NAME'
    return (
      f'there is no folder {folder}, and nothing is fetched from the Hugging'
      " Face hub; where there is a network: python -c 'from datasets import"
      f' load_dataset; load_dataset("{hub}").save_to_disk("{hub}")\''
    )
  found = [
    each
    for each in os.listdir(folder)
    if os.path.isfile(os.path.join(folder, each, 'state.json'))
  ]
  if found:
    return f'there is no such split; {schema.other_splits(found)}'
  if os.path.isfile(os.path.join(folder, 'state.json')):
    return (
      f'{folder} is one split of its own; save a DatasetDict, such as'
      ' DatasetDict(train=dataset).save_to_disk(FOLDER)'
    )
  return 'name a folder that DatasetDict.save_to_disk wrote'


def _sha256(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
