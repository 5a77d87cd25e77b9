"""Text for the base of the small models, from the training data of all tasks.

  python -m experiments.corpus

Writes runs/corpus/SPLIT.jsonl, a document a record: its source and its target,
a line each. Training text is of training splits alone, so that nothing of what
is tested later was read. Takes a minute; needs `make debian` once.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from pdl_jax.data import sources

FOLDER = Path('runs') / 'corpus'
NAMES = ('botocore', 'debian', 'chitchat', 'bible', 'sotu_interleaved')
# Validation text is there to see the base learn, test text to end its run.
MOST = {'train': None, 'validation': 400, 'test': 100}


def main() -> None:
  """Writes the three files."""
  FOLDER.mkdir(parents=True, exist_ok=True)
  for split, most in MOST.items():
    lines = [
      json.dumps(record) + '\n'
      for name in NAMES
      for record in documents(name, split, most)
    ]
    # The tokenizer learns from the first few thousand: they have to be of all.
    random.Random(0).shuffle(lines)
    path = FOLDER / f'{split}.jsonl'
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(lines), 'utf-8')
    partial.replace(path)
    print(f'{path}: {len(lines):,} documents, {path.stat().st_size:,} bytes')


def documents(
  name: str, split: str, most: int | None
) -> Iterator[dict[str, str]]:
  """Records of one of NAMES, as the corpus has them; the first `most`."""
  source = sources.load(name, split)
  count = len(source) if most is None else min(most, len(source))
  for number in range(count):
    record = source[number]
    # Verses are there in both directions: one of them has the text of both.
    if record.get('style') == 'basic':
      continue
    parts = (record['source'], record['target'])
    yield {
      'id': f'{name}:{record["id"]}',
      'group': f'{name}:{record["group"]}',
      'source': '',
      'target': '\n'.join(part for part in parts if part),
    }


if __name__ == '__main__':
  main()
