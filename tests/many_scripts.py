"""A thousand texts in many scripts, the same wherever numpy runs."""

import hashlib

import numpy as np

# First and last code point of letters, digits and signs.
SCRIPTS = {
  'latin': (0x61, 0x7A), 'accents': (0xC0, 0x17F), 'greek': (0x391, 0x3C9),
  'cyrillic': (0x410, 0x44F), 'armenian': (0x561, 0x586),
  'hebrew': (0x5D0, 0x5EA), 'arabic': (0x621, 0x64A),
  'devanagari': (0x904, 0x939), 'bengali': (0x985, 0x9B9),
  'tamil': (0xB85, 0xBB9), 'thai': (0xE01, 0xE3A), 'georgian': (0x10D0, 0x10FA),
  'hangul': (0xAC00, 0xD7A3), 'hiragana': (0x3041, 0x3096),
  'katakana': (0x30A1, 0x30FA), 'han': (0x4E00, 0x9FA5),
  'emoji': (0x1F600, 0x1F64F), 'ascii': (0x21, 0x7E),
}  # fmt: skip
GAPS = (' ', ' ', ' ', '  ', '\n', '\n\n', '\t', ', ', '. ', "'s ", ' 12 ', '-')
COUNT = 1000


def texts():
  """Words of one script or two, with what can stand between them."""
  random = np.random.default_rng(0)
  names = list(SCRIPTS)
  made = []
  for number in range(COUNT):
    both = (names[number % len(names)], names[random.integers(len(names))])
    parts = []
    for _ in range(random.integers(1, 12)):
      first, last = SCRIPTS[both[random.integers(2)]]
      word = random.integers(first, last + 1, random.integers(1, 9))
      parts += [''.join(map(chr, word)), GAPS[random.integers(len(GAPS))]]
    made.append(''.join(parts))
  return made


def digests(encode):
  """Of the ids of each twenty texts.

  Args:
    encode: from a text to its ids, none added.
  """
  found, every = [], texts()
  for start in range(0, COUNT, 20):
    ids = [list(map(int, encode(text))) for text in every[start : start + 20]]
    found.append(hashlib.sha256(repr(ids).encode()).hexdigest()[:12])
  return found
