"""Measures a finished run again, optionally with newly generated texts.

  python launch.py evaluate RUN
  python launch.py evaluate RUN --decode.method=beam --decode.beams=4
  python launch.py evaluate RUN --decode.tilt=0.25 --models=before,after

RUN is a run folder, whose own configuration is used; --config is not needed.
Every stored set of predictions is measured, which needs no model. With --decode
the run's model first generates in that way too. KEY of --decode.KEY=VALUE is a
key of config.decode (--help_config prints them); other keys have their
defaults. --models says which models generate: before fine-tuning, after it (the
default), or both. Results go to RUN/evaluations.json.
"""

from collections.abc import Sequence

from pdl_jax.cli import given
from pdl_jax.cli.explained import explained
from pdl_jax.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  folder = given.folder('evaluate', 'RUN', arguments)
  from pdl_jax.cluster import multihost
  from pdl_jax.run import rescore

  decode, models = given.decode(), tuple(given.MODELS.value)
  if unknown := set(models) - set(rescore.MODELS):
    raise ConfigError(
      f'--models {", ".join(sorted(unknown))} is not one of '
      f'{", ".join(rescore.MODELS)}'
    )
  if given.MODELS.present and decode is None:
    raise ConfigError(
      '--models says what generates, and nothing does without --decode'
    )
  with explained(folder):
    stop = given.begin()
    multihost.default_backend()
    rescore.run(folder, decode, models, stop)
  return 0
