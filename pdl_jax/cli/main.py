"""Commands of launch.py:

  python launch.py --config=configs/NAME.py[:MODE] [--config.KEY=VALUE ...]
      evaluates, trains, and evaluates again; the same command continues a run
      that was stopped; --dry_run says what it would be and take
  python launch.py --config=... --sweep=alpha,seed
  python launch.py --config=... --sweep=alpha=0,0.25 --sweep=seed=0,1
      the product of axes, each cell a run; what is done is not run again
  python launch.py --config=... --pod=NAME --zone=ZONE
      the run on a TPU or GPU cluster
  python launch.py --sweep=experiments/NAME
      what an experiment declares
  python launch.py preview --config=...      what the loss will do, by token
  python launch.py evaluate RUN              a finished run, measured again
  python launch.py export RUN --to=FOLDER    its model, for Hugging Face tools
  python launch.py report experiments/NAME   tables and figures of records
  python launch.py status FOLDER             how far runs and sweeps are

--help after a command says more about it; alone, about runs, sweeps and pods.
--help_config prints every key of a configuration.

Exit codes: 0 done, 1 cells of a sweep failed, 2 bad config, 3 data, 4
environment or host, 5 diverged, 6 checkpoint, 70 a fault of pdl_jax with its
traceback in the named file, 75 preempted: the same command continues.
"""

import difflib
import io
import os
import shlex
import sys
from collections.abc import Sequence

from pdl_jax import process
from pdl_jax.cli import (
  evaluate,
  export,
  given,
  preview,
  report,
  run,
  status,
)
from pdl_jax.cli.explained import explained, word
from pdl_jax.errors import ConfigError, PdlError, printable

COMMANDS = {
  'preview': preview, 'evaluate': evaluate, 'export': export,
  'report': report, 'status': status,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
  """Runs the command in `arguments` (sys.argv); returns its exit code."""
  process.set_xla_flags()
  process.keep_compiled()
  # On jax 0.10.2 several CPU devices in one process can deadlock with fewer
  # threads; set it before JAX starts. One device does not need it, and is
  # slower with it.
  if os.environ.get('JAX_NUM_CPU_DEVICES', '1') != '1':
    os.environ.setdefault('NPROC', '16')
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # A character that the terminal lacks must not stop the program.
      stream.reconfigure(errors='backslashreplace')
  try:
    with explained():
      return _dispatch(arguments)
  except PdlError as error:
    print(f'{word(error)}: {printable(str(error))}', file=sys.stderr)
    return error.exit_code


def _dispatch(arguments: Sequence[str]) -> int:
  name = arguments[1] if len(arguments) > 1 else ''
  if name.startswith('-'):
    name = ''
  if {'--help', '-h', '--helpshort', '--helpfull'} & set(arguments[1:]):
    if name in COMMANDS:
      print(COMMANDS[name].__doc__)
    else:
      print(__doc__, run.PAGE, sep='')
    print(given.flags_of(name))
  elif '--help_config' in arguments:
    from pdl_jax.cli import keys

    if any(argument.startswith('--config') for argument in arguments):
      given.read('', arguments)  # Its file may register a loss.
    print(keys.text())
  elif len(arguments) < 2:
    print(__doc__)
  elif name in COMMANDS:
    return COMMANDS[name].main([arguments[0], *arguments[2:]])
  elif name:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
    raise ConfigError(
      f'there is no command {name!r}; did you mean {nearest!r}? Commands are '
      f'{", ".join(COMMANDS)}; a run begins with --config'
    )
  else:
    _check_spelling(arguments)
    return run.main(arguments)
  return 0


def _check_spelling(arguments: Sequence[str]) -> None:
  """Says how commands that used to be flags are spelled now."""
  for number, argument in enumerate(arguments):
    name, equals, value = argument.lstrip('-').partition('=')
    if not argument.startswith('-') or name not in COMMANDS:
      continue
    folder = [value] if equals and name != 'preview' else []
    rest = [*folder, *arguments[1:number], *arguments[number + 1 :]]
    command = shlex.join(['python', arguments[0], name, *rest])
    raise ConfigError(f'--{name} is a command now: {command}')
