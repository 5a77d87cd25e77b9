"""The one door from the shell.

  python launch.py --config=configs/summarize.py[:MODE] [--workdir=DIR]
                   [--config.KEY=VALUE ...]

Exit codes: 0 done, 2 bad config, 3 data, 4 environment or host, 5 diverged,
6 checkpoint, 75 preempted: the same command continues.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# On jax 0.10.2 several CPU devices in one process can deadlock with fewer
# threads; it has to be set before JAX starts. One device neither needs it nor
# runs as fast with it.
if os.environ.get('JAX_NUM_CPU_DEVICES', '1') != '1':
  os.environ.setdefault('NPROC', '16')

from absl import flags
from ml_collections import config_flags

from pdl_jax import job, records
from pdl_jax.errors import ConfigError, HostError, PdlError, PreemptedError
from pdl_jax.settings import Settings
from pdl_jax.train import StopRequest

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/NAME.py, or configs/NAME.py:MODE.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder; default: runs/NAME/<overrides>-<hash>.'
)


def parse(arguments: Sequence[str]) -> tuple[Settings, Path]:
  """The settings and the run folder that a command line means.

  Raises:
    ConfigError: for anything in it that is not understood.
  """
  try:
    rest = flags.FLAGS(arguments)
  except (flags.Error, KeyError, AttributeError, TypeError) as error:
    raise ConfigError(_one_line(error)) from error
  if rest[1:]:
    raise ConfigError(f'arguments without a flag: {" ".join(rest[1:])}')
  if _CONFIG.value is None:
    raise ConfigError('no --config; try --config=configs/summarize.py:tiny')
  flag = flags.FLAGS['config']
  file, _, mode = config_flags.get_config_filename(flag).partition(':')
  if not Path(file).is_file():
    raise ConfigError(f'--config: there is no file {file} in {Path.cwd()}')
  settings = Settings.from_config(_CONFIG.value)
  if _WORKDIR.value is not None:
    return settings, Path(_WORKDIR.value)
  overrides = config_flags.get_override_values(flag)
  name = '-'.join(part for part in (Path(file).stem, mode) if part)
  run = records.run_id(settings.resolved, overrides)
  return settings, Path('runs') / name / run


def _one_line(error: Exception) -> str:
  """What a parser says, without its traceback."""
  if isinstance(error, KeyError | AttributeError):
    # ml_collections quotes its message once a level: "'alhpa'\nDid you ...".
    text = str(error).replace('\\n', '\n').replace('\\', '')
    key, _, hint = (part.strip(' \'"') for part in text.partition('\n'))
    hint = f' {hint}' if hint else ''
    return f'unknown config key {key!r}.{hint} (configs/common.py lists all)'
  return str(error).splitlines()[-1].removeprefix('ValueError: ')


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  stop, settings, workdir = StopRequest(), None, None
  try:
    settings, workdir = parse(arguments)
    job.run(settings, workdir, stop)
  except PdlError as error:
    return _report(error, settings, workdir)
  except OSError as error:
    # Whatever the operating system refuses: a full disk, a read-only folder.
    where = f' ({error.filename})' if error.filename else ''
    return _report(
      HostError(
        f'{error.strerror or error}{where}, with --workdir={workdir}; free '
        'space there or choose another'
      ),
      settings,
      workdir,
    )
  return 0


def _report(
  error: PdlError, settings: Settings | None, workdir: Path | None
) -> int:
  """One line for the person, one field for whoever reads status.json."""
  word = 'stopped' if isinstance(error, PreemptedError) else 'error'
  print(f'{word}: {error}', file=sys.stderr)
  if settings is not None and workdir is not None:
    records.note_failure(workdir, settings.resolved, word, str(error))
  return error.exit_code


if __name__ == '__main__':
  sys.exit(main(sys.argv))
