"""What a loss will do to some training examples, before a step is spent.

Reading order: content, pieces, scale, collect (everything computed), facts
(the words that both views share), terminal, plot, page.
"""

from pdl_jax.preview.collect import collect
from pdl_jax.preview.content import Preview, PreviewExample
from pdl_jax.preview.page import to_html
from pdl_jax.preview.terminal import print_terminal

__all__ = [
  'Preview',
  'PreviewExample',
  'collect',
  'print_terminal',
  'to_html',
]
