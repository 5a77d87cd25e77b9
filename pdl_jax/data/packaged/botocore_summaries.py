"""AWS API documentation as summarization pairs, held out by service.

Source: the package botocore (Apache-2.0). As in XSum (Narayan et al. 2018,
arXiv 1808.08745), the first sentence is the summary and the rest the document.
"""

import collections
import functools
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import tqdm

from pdl_jax.data.packaged import prose, texts
from pdl_jax.data.packaged.pairs import without_copies
from pdl_jax.data.packaged.texts import Example
from pdl_jax.errors import DataError

VERSION = '1.44.5'
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 4, 48
MIN_DOCUMENT_WORDS = 20
MIN_PROSE = 0.6  # share of plain words; below it is a list or code

# The salt is chosen for 80/10/10 by pairs (to a percent), with at least 20
# families per split, each under a fifth of validation or test.
split_of = functools.partial(texts.split_by_hash, salt='31/')
# Services that share text under different names: forks, successors, parts, or
# one product under two names (found by counting shared shingles).
_KIN = {
  'appstream': 'workspaces', 'batch': 'ecs', 'codestar': 'codeconnections',
  'discovery': 'migration', 'docdb': 'rds', 'elementalinference': 'media',
  'es': 'opensearch', 'eventbridgev2': 'events', 'fms': 'waf',
  'geo': 'location', 'identitystore': 'sso', 'logs': 'cloudwatch',
  'memorydb': 'elasticache', 'meteringmarketplace': 'marketplace',
  'mgh': 'migration', 'neptune': 'rds', 'pca': 'acm', 'qbusiness': 'kendra',
  'sdb': 'simpledb', 'ses': 'pinpoint', 'sms': 'pinpoint', 'wisdom': 'qconnect',
}  # fmt: skip
_QUALIFIER = re.compile(r'[(\[][^()\[\]]{1,100}[)\]]:? +(?=[A-Z])')
_RELATED = re.compile(
  r'The following [\w ]+ (?:are|is) related to|Related (?:operations|actions)\b'
  r'|Learn more$'
)
_SENTENCE = re.compile(r'["“(]?[A-Z0-9].*[.!?]["”’\')\]]*')
# "STANDARD - Two sources", "Note: see", "can be one of the following: A, B."
_LABEL = re.compile(
  r'(?:\S+ ){0,2}\S+(?::| [-–—]) |.*\b(?:following|supported|one of):'
  r'|(?:Note|Important|Deprecated|Optional|Required)\b'
)
_PLAIN_WORD = re.compile(r'[("“]*[A-Za-z][a-z\'’-]*[)"”.,:;!?]*')


def family_names(services: list[str]) -> dict[str, str]:
  """Maps each service to its family, which is never split.

  The stem is the name before the first hyphen, without a version (`v2`). It
  joins another stem that it begins with, if that has three letters or ends in a
  digit: iotsitewise joins iot, s3control joins s3. Uniting strangers costs
  nothing; separating relatives would leak.
  """
  stems = {s: re.sub(r'v\d+$', '', s.split('-')[0]) for s in services}
  roots = {s for s in stems.values() if len(s) > 2 or s[-1].isdigit()}
  roots.add('media')  # the media services document the same codecs

  def family(stem: str) -> str:
    root = min((r for r in roots if stem.startswith(r)), key=len, default=stem)
    return _KIN.get(root, root)

  return {service: family(stem) for service, stem in stems.items()}


def read_service(folder: Path) -> dict:
  """Reads the newest API version of a service."""
  files = sorted(folder.glob('*/service-2.json*'))
  if not files:
    raise DataError(f'botocore: {folder.name} holds no service-2.json')
  try:
    data = files[-1].read_bytes()
    text = gzip.decompress(data) if files[-1].suffix == '.gz' else data
    return json.loads(text)
  except (OSError, EOFError, zlib.error, ValueError) as error:
    raise DataError(
      f'botocore: {folder.name}/{files[-1].parent.name}/{files[-1].name} is'
      f' damaged ({error}): pip install --force-reinstall botocore'
    ) from error


def documentation(service: str, model: Mapping) -> Iterator[tuple[str, str]]:
  """Yields (id, HTML) of a service, its operations, shapes and members."""
  yield service, model.get('documentation', '')
  for name, operation in sorted(model.get('operations', {}).items()):
    yield f'{service}/operations/{name}', operation.get('documentation', '')
  for name, shape in sorted(model.get('shapes', {}).items()):
    path = f'{service}/shapes/{name}'
    yield path, shape.get('documentation', '')
    for member, value in sorted(shape.get('members', {}).items()):
      yield f'{path}/members/{member}', value.get('documentation', '')


def first_and_rest(markup: str) -> tuple[str, str]:
  """Splits documentation into its first sentence and the rest.

  It drops notes and titles before the first sentence, and a qualifier that
  begins it. It also drops pointers ("For more information, see ..."), a colon
  whose list is gone, and everything from a list of related pages on.
  """
  blocks = prose.html_blocks(markup)
  while blocks and blocks[0].aside:
    blocks.pop(0)
  if not blocks:
    return '', ''
  sentences = [s for b in blocks for s in prose.split_sentences(b.text)]
  summary = _QUALIFIER.sub('', sentences[0], count=1)
  body = itertools.takewhile(lambda s: not _RELATED.match(s), sentences[1:])
  rest = [s for s in body if not prose.is_pointer(s)]
  while rest and rest[-1].endswith(':'):
    rest.pop()
  return summary, ' '.join(rest)


def why_unfit(summary: str, document: str) -> str | None:
  """Returns why a pair is no summarization example, or None."""
  words, length = document.split(), len(summary.split())
  if len(words) < MIN_DOCUMENT_WORDS:
    return 'document_too_short'
  if length < MIN_SUMMARY_WORDS:
    return 'summary_too_short'
  if length > MAX_SUMMARY_WORDS:
    return 'summary_too_long'
  if not _SENTENCE.fullmatch(summary):
    return 'summary_not_a_sentence'
  if _LABEL.match(summary):
    return 'summary_is_a_label'
  if sum(map(bool, map(_PLAIN_WORD.fullmatch, words))) < MIN_PROSE * len(words):
    return 'document_not_prose'
  return None


def make_example(path: str, group: str, markup: str) -> Example | str:
  """Makes an example of a documentation string, or says why not."""
  if not markup.strip():
    return 'empty'
  # Most are too short for any parser to find enough words.
  most = len(markup.split()) + markup.count('<') + markup.count('&')
  if most <= MIN_DOCUMENT_WORDS:
    return 'document_too_short'
  summary, document = first_and_rest(markup)
  return why_unfit(summary, document) or Example(path, group, document, summary)


def examples_of(data: Path) -> Iterator[Example | str]:
  """Yields the examples of botocore's data folder, by service and path."""
  services = sorted(p.name for p in data.iterdir() if p.is_dir())
  if not services:
    raise DataError('botocore: its data folder holds no services')
  families = family_names(services)
  for service in tqdm.tqdm(services, 'botocore: services', disable=None):
    for path, markup in documentation(service, read_service(data / service)):
      yield make_example(path, families[service], markup)


@texts.register_text(
  'botocore',
  dataset='botocore_summaries',
  package='botocore',
  package_version=VERSION,
  description=(
    'The documentation of the operations and data types of Amazon Web'
    ' Services, from the Python package botocore: the first sentence'
    ' (summary) is to be written from the rest (document). Families of'
    ' services are held out whole; no document, summary or near-copy'
    ' occurs twice.'
  ),
  citation=f'botocore {VERSION}, Amazon Web Services, Apache License 2.0.',
  license='Apache-2.0',
  fields=texts.OWN_NAMES | {'source': 'document', 'target': 'summary'},
)
def make(dropped: collections.Counter[str]) -> texts.Splits:
  """Makes pairs of the first sentence and the rest of API documentation."""
  data = texts.package_folder('botocore', VERSION) / 'data'
  kept = without_copies(examples_of(data), split_of, dropped)
  return texts.by_split(kept, split_of)
