"""Shows what the loss will do to some training examples; trains nothing.

  python launch.py preview --config=configs/NAME.py[:MODE] [--config.KEY=VALUE]

The terminal shows each target token in the colour of its weight. A page beside
the run folder shows the same, with a plot of weight against count.
"""

from collections.abc import Sequence

from pdl_jax.cli import given
from pdl_jax.cli.explained import explained

_EXAMPLES = 5


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  given.read('preview', arguments)
  from pdl_jax.cluster import multihost
  from pdl_jax.data import pipeline
  from pdl_jax.data.tokenizer import spelled
  from pdl_jax.preview import collect, show
  from pdl_jax.run import prepare

  given.begin()
  multihost.default_backend()
  settings, workdir = given.configured()
  with explained(workdir):
    ready = prepare.prepare(settings, None, weights=False)
    examples = ready.train.examples
    chosen = [
      collect.PreviewExample(
        record['id'],
        spelled(b''.join(map(ready.model.tokenizer.raw, prompt))), target,
      )
      for number in pipeline.sample(examples, _EXAMPLES).tolist()
      for record in [examples.record(number)]
      for prompt, target in [examples.prompt_and_target(number)]
    ]  # fmt: skip
    found = collect.collect(
      settings.loss, ready.tables, ready.frequencies.task,
      ready.model.tokenizer, chosen,
    )  # fmt: skip
    show.print_terminal(found)
    page = workdir.with_name(f'{workdir.name}.preview.html')
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(show.to_html(found), 'utf-8')
    print(f'\nthe same with the plot of weight against count: {page}')
  return 0
