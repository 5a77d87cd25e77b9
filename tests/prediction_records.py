"""Prediction records for the tests of pdl_jax.evaluate."""

from hypothesis import strategies as st

VOCAB = 12
STOP = 0
# The corpus of the golden values.
TEXTS = (
  'token number one token number two token number three',
  'the cat sat on the mat',
  'the cat sat on the mat',
  'a rare quokka smiled',
)
WORDS = ('the', 'cat', 'sat', 'rare', 'quokka', 'smiled')


def make_record(name='a', **fields):
  """A valid record; `fields` replace its own."""
  return {
    'id': name,
    'prompt': 'Summarize: the cat sat on the mat.',
    'source': 'The cat sat on the mat.',
    'references': ['the cat sat'],
    'text': 'the cat smiled',
    'token_ids': [3, 4, 5, STOP],
    'finish_reason': 'stop',
    'reference_ids': [3, 4, 6, STOP],
    'reference_nll': [1.0, 2.0, 3.0, 0.5],
    'decode': {'method': 'greedy', 'max_new_tokens': 8},
  } | fields


@st.composite
def record_lists(draw):
  """Between one and five valid records with distinct ids."""
  words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)
  tokens = st.lists(st.integers(1, VOCAB - 1), max_size=6)
  records = []
  for index in range(draw(st.integers(1, 5))):
    reference_ids = [*draw(tokens), STOP]
    nll = draw(
      st.lists(
        st.floats(0, 30),
        min_size=len(reference_ids),
        max_size=len(reference_ids),
      )
    )
    records.append(
      make_record(
        str(index),
        references=[' '.join(draw(words))],
        text=' '.join(draw(words)),
        token_ids=[*draw(tokens), STOP],
        reference_ids=reference_ids,
        reference_nll=nll,
      )
    )
  return records


def count_arrays():
  """Training counts [VOCAB] that span the frequency buckets."""
  sizes = st.sampled_from([0, 1, 2, 3, 4, 5, 9, 10, 99, 100, 999, 1000, 10**6])
  return st.lists(sizes, min_size=VOCAB, max_size=VOCAB)
