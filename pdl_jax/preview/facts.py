"""The words of a preview that the terminal and the page share."""

from pdl_jax.errors import printable
from pdl_jax.preview.content import Bucket, Preview, ShownExample, Token

TOKEN_SIGNS = (
  '· space, ↵ new line, ⇥ tab, <0xE6> a byte that is no character by itself'
)
_MISSING = '-'


def number(value: float | None) -> str:
  """Three digits."""
  return _MISSING if value is None else f'{value:.3g}'


def percent(share: float | None) -> str:
  """One digit after the point."""
  return _MISSING if share is None else f'{share:.1%}'


def count(amount: float) -> str:
  """Whole counts whole; those of a mix with three digits."""
  return f'{amount:,.0f}' if amount == int(amount) else f'{amount:.3g}'


def title(preview: Preview) -> str:
  """The loss with its settings, on one line."""
  settings = ' '.join(f'{k}={v}' for k, v in preview.settings.items())
  return printable(f'{preview.loss} {settings}')


def lines(preview: Preview) -> list[tuple[str, str]]:
  """What there is to say of the whole corpus: names and values."""
  facts = [
    (
      'corpus',
      f'{printable(preview.corpus)}: {preview.tokens:,} target tokens of '
      f'{preview.types:,} types, tokenizer {printable(preview.tokenizer)}',
    )
  ]
  spread = preview.distribution
  if spread is None:
    return facts
  unit = ' nats' if preview.kind == 'bias' else ''
  facts.append((
    f'{preview.kind} of counted types',
    f'min {number(spread.low)}, median {number(spread.middle)}, '
    f'max {number(spread.high)}{unit}; '
    f'mean of a running token {number(spread.mean)}',
  ))
  if spread.effective_share is not None:
    facts.append((
      'effective sample size',
      f'{percent(spread.effective_share)} of the tokens',
    ))
  if spread.unseen:
    facts.append((
      'never counted',
      f'{spread.unseen:,} types, median {preview.kind} '
      f'{number(spread.unseen_value)}{unit}',
    ))
  return facts


def bucket_header(preview: Preview) -> list[str]:
  """Headings over `bucket_row`."""
  header = ['count in training', 'types', 'share of tokens']
  if preview.kind == 'weight':
    header.append('share of weight')
  if preview.kind != 'none':
    header.append(f'mean {preview.kind}')
  return header


def bucket_row(preview: Preview, bucket: Bucket) -> list[str]:
  """A line of the table by frequency."""
  row = [bucket.name, f'{bucket.types:,}', percent(bucket.token_share)]
  if preview.kind == 'weight':
    row.append(percent(bucket.weight_share))
  if preview.kind != 'none':
    row.append(number(bucket.mean))
  return row


def extremes(preview: Preview) -> list[tuple[str, tuple[Token, ...]]]:
  """The lists of types, with what the types of each are."""
  high, low = 'heaviest', 'lightest'
  if preview.kind == 'bias':
    high, low = 'lowest bias', 'highest bias'
  lists = [(high, preview.heaviest), (low, preview.lightest)]
  return [(name, tokens) for name, tokens in lists if tokens]


def heading(preview: Preview, example: ShownExample) -> str:
  """The line above an example."""
  told = f'{printable(example.id)}, {len(example.tokens)} target tokens'
  if example.mean is None:
    return told
  return f'{told}, mean {preview.kind} {number(example.mean)}'


def hover(preview: Preview, token: Token) -> str:
  """What is known of a token."""
  rank = 'never counted' if token.rank is None else f'rank {token.rank:,}'
  parts = [f'id {token.id}', f'count {count(token.count)}', rank]
  if token.value is not None:
    parts.append(f'{preview.kind} {number(token.value)}')
  return ', '.join(parts)
