"""The TFDS builder that prepares every packaged text."""

import collections
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from pdl_jax.data import external, schema
from pdl_jax.data.packaged.texts import TEXTS, Example, Text
from pdl_jax.errors import DataError, HostError, reason

_AGAIN = 'delete that folder and it is prepared again'
_Rows = Iterator[tuple[str, dict[str, str]]]


class TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Prepares a packaged text without a download."""

  text: ClassVar[Text]

  @functools.cached_property
  def report(self) -> tfds.core.MetadataDict:
    """Returns metadata.json; empty before, so it replaces no missing file."""
    return tfds.core.MetadataDict()

  def _info(self) -> tfds.core.DatasetInfo:
    text = self.text
    ends = text.fields['source'], text.fields['target']
    return tfds.core.DatasetInfo(
      builder=self,
      description=text.description,
      features=tfds.features.FeaturesDict(
        {stored: tfds.features.Text() for stored in text.fields.values()}
      ),
      supervised_keys=None if text.documents else ends,
      citation=text.citation,
      license=text.license,
      metadata=self.report,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, _Rows]:
    del dl_manager  # everything is on this machine
    dropped: collections.Counter[str] = collections.Counter()
    splits = self.text.make(dropped)

    def each(count: Callable[[list[Example]], int]) -> dict[str, int]:
      return {split: count(rows) for split, rows in splits.items()}

    self.report.update(
      package=self.text.package,
      package_version=self.text.wanted_version(),
      kept=each(len),
      groups=each(lambda rows: len({row.group for row in rows})),
    )
    if self.text.documents:
      self.report['words'] = each(
        lambda rows: sum(len(row.target.split()) for row in rows)
      )
    self.report['dropped'] = dict(sorted((+dropped).items()))
    return {s: self._generate_examples(rows) for s, rows in splits.items()}

  def _generate_examples(self, examples: Iterable[Example]) -> _Rows:
    fields = self.text.fields.items()
    for example in examples:
      yield example.id, {s: getattr(example, field) for field, s in fields}


def builder_class(packaged: Text) -> type[TextBuilder]:
  """Makes the builder class of a registered text."""

  class Builder(TextBuilder, skip_registration=True):
    text = packaged
    name = packaged.dataset
    VERSION = tfds.core.Version(packaged.version)
    RELEASE_NOTES: ClassVar = {
      packaged.version:
        f'From {packaged.package} {packaged.wanted_version()}.'
    }  # fmt: skip

  return Builder


def open_packaged(
  name: str, split: str, part: str, data_dir: str | None
) -> schema.Source:
  """Opens a split or a part of it; the first call prepares the data."""
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  text = TEXTS[name]
  try:
    folder = _prepared(text, os.path.expanduser(data_dir) if data_dir else None)
  # Errors of array_record, also for a full disk.
  except (OSError, RuntimeError) as error:
    raise HostError(
      f'{name} cannot be prepared in the data_dir'
      f' {data_dir or "of TFDS (TFDS_DATA_DIR)"}: {reason(error)}; free space'
      ' there, or name a folder that can be written with'
      ' --config.data.data_dir=FOLDER'
    ) from error
  with external.torn_files_named(folder, _AGAIN):
    builder = tfds.builder_from_directory(folder)
    metadata = dict(builder.info.metadata or {})
    made_from = metadata.get('package_version')
    wanted = text.wanted_version() or made_from
    if made_from is None or made_from != wanted:
      raise DataError(
        f'{folder} was made from {text.package} {made_from}, not {wanted};'
        f' {_AGAIN}'
      )
    records = external.read_split(name, builder, split, {split: part})
  made_from = f'{text.package}=={made_from}'
  return schema.Source(
    records=records,
    fields=text.fields,
    identity=[text.dataset, text.version, part, len(records), made_from],
    metadata=metadata,
    place=folder,
    remedy=_AGAIN,
    unique=True,  # tests of each assert it
  )


def _prepared(text: Text, data_dir: str | None) -> str:
  place = f'{text.dataset} in {data_dir or "the data_dir of TFDS"}'
  with external.torn_files_named(place, _AGAIN):
    builder = builder_class(text)(data_dir=data_dir)
  folder = str(builder.data_dir)
  if builder.info.initialized:
    return folder
  print(
    f'preparing {builder.name} {builder.version} in {folder}'
    ' (once, well under a minute)',
    file=sys.stderr,
  )
  try:
    # TFDS announces a download, but there is none.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(file_format='array_record')
  except (OSError, RuntimeError):
    # Another process may have been faster.
    if not os.path.exists(os.path.join(folder, 'dataset_info.json')):
      raise
  return folder
