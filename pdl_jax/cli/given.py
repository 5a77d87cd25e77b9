"""Defines and reads the flags of all commands.

Nothing heavy is imported before the flags are read.
"""

import dataclasses
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pdl_jax import own_files
from pdl_jax.cluster import fault, options, pods
from pdl_jax.errors import ConfigError

if TYPE_CHECKING:
  from pdl_jax.config import Settings
  from pdl_jax.train.preemption import StopRequest

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/NAME.py, or configs/NAME.py:MODE.'
)
flags.DEFINE_bool(
  'help_config', False, 'Print every key of a configuration, and what it means.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder; default: runs/NAME/<overrides>.'
)
MODELS = flags.DEFINE_list(
  'models', ['after'], 'With --decode: before, after, or both.'
)
TO = flags.DEFINE_string('to', None, 'A new folder.')
ADAPTER = flags.DEFINE_bool(
  'adapter', False, 'The adapter alone, in the format of PEFT.'
)
CHECK = flags.DEFINE_bool('check', False, 'Compare, write nothing.')
SWEEP = flags.DEFINE_multi_string(
  'sweep', [], 'Axes, generators sweep_NAME of the config file, as in '
  'alpha,seed; or a key and its values, as in alpha=0,0.25',
)  # fmt: skip
WORKERS = flags.DEFINE_integer(
  'workers', 1, 'With --sweep: cells at a time.', lower_bound=1
)
RETRIES = flags.DEFINE_integer(
  'retries', 1, 'With --sweep: new tries of a failed cell.', lower_bound=0
)
FAIL_FAST = flags.DEFINE_bool(
  'fail_fast', False, 'With --sweep: stop at the first cell that fails.'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False,
  'Say what would be run, and run nothing.',
)  # fmt: skip
ENGINE = flags.DEFINE_enum(
  'engine', 'local', ['local', 'ray'],
  'With --sweep: this machine, or the Ray cluster RAY_ADDRESS.',
)  # fmt: skip
RESOURCES = flags.DEFINE_list(
  'resources', [], 'With --engine=ray: what a cell takes: CPU=1,TPU=4.'
)
HOSTS = flags.DEFINE_integer(
  'hosts_per_cell', 1, 'With --engine=ray: machines of a cell, each with '
  '--resources; of TPU, a slice.', lower_bound=1,
)  # fmt: skip
# A run has the flags of preview, and all that no other command has.
_OF = {
  'preview': ('config', 'workdir', 'backend'),
  'evaluate': ('decode', 'models', 'backend'),
  'export': ('to', 'adapter', 'backend'),
  'report': ('check',),
  'status': (),
}


def _names(command: str) -> list[str]:
  """Lists the flags of a command, where '' is a run."""
  if command in _OF:
    return list(_OF[command])
  others = {name for names in _OF.values() for name in names}
  own = flags.FLAGS.flags_by_module_dict()
  return [
    flag.name
    for module in (__name__, options.__name__, pods.__name__)
    for flag in own[module]
    if flag.name in _OF['preview'] or flag.name not in others
  ]


def flags_of(command: str) -> str:
  """Returns help on the flags of a command, where '' is a run."""
  lines: list[str] = []
  for name in _names(command):
    if name in flags.FLAGS:  # --decode is on the page of its command.
      flag = flags.FLAGS[name]
      default = f'={flag.default_as_str}' if flag.default else ''
      about = ' '.join((flag.help or '').split())
      lines.append(f'  --{name}{default}'.replace("'", ''))
      lines.append(textwrap.indent(textwrap.fill(about, 74), ' ' * 6))
  return '\n'.join(lines)


def read(command: str, arguments: Sequence[str]) -> list[str]:
  """Reads the flags, and returns the arguments that are not flags.

  `command` is '' for a run; `arguments` begin with the program's name.
  """
  flags.FLAGS.set_gnu_getopt(True)
  for argument in arguments:
    if argument.startswith('--config='):
      file = argument.removeprefix('--config=').partition(':')[0]
      own_files.look_beside(Path(file))
  try:
    _check_names(command, arguments)
    if command == 'evaluate':
      from pdl_jax.generate import DecodeSettings

      # It looks for its keys on the command line as soon as it is defined.
      config_flags.DEFINE_config_dict(
        'decode', ConfigDict(dataclasses.asdict(DecodeSettings())).lock(),
        'How to generate; the keys of config.decode.',
      )  # fmt: skip
    rest = flags.FLAGS(arguments)[1:]
  except (flags.Error, KeyError, AttributeError, TypeError) as error:
    where, told = fault.in_config(error), _one_line(error, arguments)
    raise ConfigError(f'{where}: {told}' if where else told) from error
  if rest and command in ('', 'preview'):
    raise ConfigError(f'arguments without a flag: {" ".join(rest)}')
  return rest


def folder(command: str, what: str, arguments: Sequence[str]) -> Path:
  """Reads the flags, and the one folder that a command takes.

  `what` stands for the folder in the help.
  """
  rest = read(command, arguments)
  if len(rest) != 1:
    raise ConfigError(
      f'{command} takes one folder, as in python launch.py {command} {what}; '
      f'got {" ".join(rest) or "none"}'
    )
  return Path(rest[0])


def _check_names(command: str, arguments: Sequence[str]) -> None:
  """Refuses flags of other commands, and unknown ones before a config loads."""
  names, known = _names(command), flags.FLAGS
  for argument in arguments:
    if not argument.startswith('-'):
      continue
    name = argument.lstrip('-').partition('=')[0].partition('.')[0]
    if name not in known and name != 'decode':
      name = name.removeprefix('no')
    owners = [each for each in ('', *_OF) if name in _names(each)]
    if owners and name not in names:
      to = f'{owners[0]} --help'.strip()
      more = {
        'decode': '; a run takes --config.decode',
        'config': '; the configuration of a run is in its folder',
      }.get(name, '')
      raise ConfigError(
        f'--{name} is no flag of {command or "a run"}; '
        f'python launch.py {to} has it{more}'
      )
    # A single dash may begin a negative number that is another flag's value.
    if name not in known and not owners and argument.startswith('--'):
      known(['', argument])  # Raises, and names the nearest.


def begin() -> 'StopRequest':
  """Hears signals, chooses the backend, and joins the other hosts, if any."""
  from pdl_jax.cluster import multihost
  from pdl_jax.train.preemption import StopRequest

  stop = StopRequest()
  options.choose_backend()
  own = multihost.Place.here()
  return stop if own is None else multihost.join(own)


def decode() -> dict[str, Any] | None:
  """Returns all keys of --decode, or None if none was given."""
  if not overrides('decode'):
    return None
  keys: Any = flags.FLAGS['decode'].value
  return keys.to_dict()


def overrides(name: str) -> dict[str, Any]:
  """Returns the dotted keys of --config or --decode that are given."""
  return config_flags.get_override_values(flags.FLAGS[name])


def configured() -> 'tuple[Settings, Path]':
  """Returns the settings and the run folder that the flags mean."""
  from pdl_jax.config import Settings, run_id
  from pdl_jax.sweep import claims

  default = config_folder()
  try:
    settings = Settings.from_config(CONFIG.value)
  except (KeyError, TypeError) as error:
    raise ConfigError(
      f'--config: {config_file()} has other keys than configs/base.py ({error})'
    ) from error
  if WORKDIR.value is not None:
    return settings, Path(WORKDIR.value)
  name = run_id(settings.resolved, overrides('config'))
  return settings, claims.default_folder(default, name, settings.hash)


def config_folder() -> Path:
  """Returns the default folder for runs of this config file and mode."""
  if not flags.FLAGS['config'].present:
    raise ConfigError('no --config; try --config=configs/summarize.py:tiny')
  file, _, mode = config_file().partition(':')
  if not Path(file).is_file():
    raise ConfigError(f'--config: there is no file {file} in {Path.cwd()}')
  # If the file could not be read, .value raises the system's error.
  if not hasattr(CONFIG.value, 'to_json'):
    raise ConfigError(
      f'--config: get_config of {file} returns a '
      f'{type(CONFIG.value).__name__}, not a ConfigDict'
    )
  name = '-'.join(part for part in (Path(file).stem, mode) if part)
  return Path('runs') / name


def config_module() -> types.ModuleType:
  """Returns the config file as loaded, so what it registers is not repeated."""
  return sys.modules[f'{CONFIG.name}_config']


def config_file() -> str:
  """Returns the value of --config: file and mode."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def _one_line(error: Exception, arguments: Sequence[str]) -> str:
  """Returns what a parser or a config file says, without its traceback."""
  frames = traceback.extract_tb(error.__traceback__)
  is_lookup = isinstance(error, KeyError | AttributeError)
  if is_lookup and 'config_dict' in frames[-1].filename:
    from pdl_jax.config import unknown_key

    # The message begins with the key: "'alhpa'\nDid you mean" or 'Key "alhpa"'.
    key = re.findall(r'\w+', str(error).replace('Key', ''))[0]
    lines = [*arguments, *(frame.line or '' for frame in reversed(frames))]
    whole = [re.search(rf'\b[\w.]*\b{key}\b[\w.]*', line) for line in lines]
    asked = next((found[0] for found in whole if found), key)
    return unknown_key(key, asked.removeprefix('config.'))
  if fault.in_config(error):
    return fault.words(error)
  if is_lookup and 'get_config' in str(error):
    return '--config: the file has no function get_config'
  return re.sub(r'^[\w.]*Error: ', '', str(error).splitlines()[-1])
