"""The one door from the shell.

  python launch.py --config=configs/summarize.py[:MODE] [--workdir=DIR]
                   [--config.KEY=VALUE ...] [--preview | --dry_run]
                   [--backend=tpu] [--processes=N | --multihost [--coordinator=
                   HOST:PORT --num_processes=N --process_id=I]]
  python launch.py --evaluate=RUN [--decode.KEY=VALUE ...]
                   [--models=before,after]
  python launch.py --config=configs/summarize.py --sweep=alpha,seed
                   [--workers=N] [--retries=N] [--fail_fast] [--dry_run]
                   [--engine=ray [--resources=TPU=4] [--hosts_per_cell=N]]
                   [--processes=N]
  python launch.py --config=configs/summarize.py --pod=NAME --zone=ZONE
                   [--accelerator=v5litepod-16 ...] [--dry_run]
  python launch.py --export=RUN --to=FOLDER [--adapter]
  python launch.py --status=FOLDER
  python launch.py --sweep=experiments/NAME [--workers=N ...]
  python launch.py --report=experiments[/NAME] [--check]

--preview shows what the loss will do, token by token, and trains nothing.
--dry_run says configuration, memory of a device and command of a run, or what
a sweep or a pod would be. --multihost makes this one of several hosts, each
with the same command; --processes rehearses that here.
--evaluate measures a finished run again from its stored predictions; with
--decode it first generates in that way too.
--export writes the model of a finished run for Hugging Face tools, or what it
trained of adapters (LoRA) alone.
--sweep runs the product of named axes, each cell a run of its own; the same
command again runs what is missing. --engine=ray does it on the cluster that
RAY_ADDRESS names, where a cell can be one run on several machines, which
--processes rehearses here. --status says how far a sweep is.
--pod starts the run on a TPU or GPU cluster; --dry_run prints the commands.
docs/pods.md has the kinds of clusters and their flags.
--sweep=experiments/NAME runs what an experiment declares and collects its
records; --report makes its tables, figures and page from the records alone,
--check compares them with those that are there.

Exit codes: 0 done, 1 cells of a sweep failed, 2 bad config, 3 data, 4
environment or host, 5 diverged, 6 checkpoint, 70 a fault of pdl_jax, whose
traceback is in the file that is named, 75 preempted: the same command
continues.
"""

import os
import signal
import sys

# A signal in the seconds that the modules below take; later see
# pdl_jax.train.preemption.
# One of several processes is spoken for by its parent.
if __name__ == '__main__' and 'PDL_JAX_HOST' not in os.environ:

  def _stop_early(*_: object) -> None:
    os.write(2, b'stopped: by a signal before anything was begun\n')
    os._exit(75)

  for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) != signal.SIG_IGN:
      signal.signal(_number, _stop_early)

import dataclasses
import io
import runpy
import shlex
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# On jax 0.10.2 several CPU devices in one process can deadlock with fewer
# threads; it has to be set before JAX starts. One device neither needs it nor
# runs as fast with it.
if os.environ.get('JAX_NUM_CPU_DEVICES', '1') != '1':
  os.environ.setdefault('NPROC', '16')

from absl import flags
from ml_collections import ConfigDict, config_flags

from pdl_jax import preview, process, run_folder, sweep
from pdl_jax.cli import keys
from pdl_jax.cli.dry_run import describe
from pdl_jax.cluster import fault, multihost, options, pods, supervisor
from pdl_jax.cluster.multihost import Place
from pdl_jax.cluster.preflight import Preflight
from pdl_jax.config import RENAMED, Settings, run_id, unread
from pdl_jax.data import pipeline
from pdl_jax.data.tokenizer import spelled
from pdl_jax.errors import (
  ConfigError,
  HostError,
  PdlError,
  PreemptedError,
  printable,
)
from pdl_jax.generate import DecodeSettings
from pdl_jax.run import export, finetune, prepare, rescore
from pdl_jax.train.preemption import StopRequest

_PREVIEW_EXAMPLES = 5
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/NAME.py, or configs/NAME.py:MODE.'
)
flags.DEFINE_bool(
  'help_config', False, 'Print every key of a configuration, and what it means.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder; default: runs/NAME/<overrides>-<hash>.'
)

_PREVIEW = flags.DEFINE_bool(
  'preview', False, 'Show the weights of some examples; trains nothing.'
)
_EVALUATE = flags.DEFINE_string(
  'evaluate', None, 'Folder of a finished run, to be measured again.'
)
_MODELS = flags.DEFINE_list(
  'models', ['after'], 'With --evaluate: before, after, or both.'
)
_EXPORT = flags.DEFINE_string(
  'export', None, 'Folder of a finished run, to be written for other tools.'
)
_TO = flags.DEFINE_string('to', None, 'With --export: a new folder.')
_ADAPTER = flags.DEFINE_bool(
  'adapter', False, 'With --export: the adapter alone, in the format of PEFT.'
)
_SWEEP = flags.DEFINE_list(
  'sweep', [], 'Axes, the generators sweep_NAME of the config file: alpha,seed.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'With --sweep: cells at a time.', lower_bound=1
)
_RETRIES = flags.DEFINE_integer(
  'retries', 1, 'With --sweep: new tries of a failed cell.', lower_bound=0
)
_FAIL_FAST = flags.DEFINE_bool(
  'fail_fast', False, 'With --sweep: stop at the first cell that fails.'
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False,
  'Say what would be run, and run nothing.',
)  # fmt: skip
_ENGINE = flags.DEFINE_enum(
  'engine', 'local', ['local', 'ray'],
  'With --sweep: this machine, or the Ray cluster RAY_ADDRESS.',
)  # fmt: skip
_RESOURCES = flags.DEFINE_list(
  'resources', [], 'With --engine=ray: what a cell takes: CPU=1,TPU=4.'
)
_HOSTS = flags.DEFINE_integer(
  'hosts_per_cell', 1, 'With --engine=ray: machines of a cell, each with '
  '--resources; of TPU, a slice.', lower_bound=1,
)  # fmt: skip
_STATUS = flags.DEFINE_string('status', None, 'Folder of a sweep.')
_REPORT = flags.DEFINE_string(
  'report', None, 'Folder of an experiment, or of all of them.'
)
_CHECK = flags.DEFINE_bool(
  'check', False, 'With --report: compare, write nothing.'
)


def parse(arguments: Sequence[str]) -> dict[str, Any] | None:
  """Reads the flags.

  Returns:
    all keys of --decode, or None if none was given.

  Raises:
    ConfigError: for anything in them that is not understood.
  """
  try:
    # Looks for its keys on the command line as soon as it is defined.
    decode = config_flags.DEFINE_config_dict(
      'decode', ConfigDict(dataclasses.asdict(DecodeSettings())).lock(),
      'With --evaluate: how to generate; the keys of config.decode.',
    )  # fmt: skip
    rest = flags.FLAGS(arguments)
  except (flags.Error, KeyError, AttributeError, TypeError) as error:
    if where := fault.in_config(error):
      raise ConfigError(f'{where}: {fault.words(error)}') from error
    raise ConfigError(_one_line(error)) from error
  if rest[1:]:
    raise ConfigError(f'arguments without a flag: {" ".join(rest[1:])}')
  for name, flag in (('evaluate', _EVALUATE), ('export', _EXPORT)):
    if flag.value is not None and _CONFIG.value is not None:
      raise ConfigError(
        f'--{name} takes the configuration from its run; leave out --config'
      )
  if (_EXPORT.value is None) != (_TO.value is None):
    raise ConfigError('--export=RUN and --to=FOLDER belong together')
  if _ADAPTER.value and _EXPORT.value is None:
    raise ConfigError('--adapter belongs to --export=RUN')
  if _EVALUATE.value is None and _overrides('decode'):
    raise ConfigError(
      '--decode belongs to --evaluate=RUN; a run is told by --config.decode'
    )
  alone = {
    'evaluate': _EVALUATE, 'status': _STATUS, 'sweep': _SWEEP,
    'report': _REPORT, 'pod': flags.FLAGS['pod'], 'export': _EXPORT,
  }  # fmt: skip
  told = [f'--{name}' for name, flag in alone.items() if flag.value]
  told += ['--preview'] * _PREVIEW.value
  if len(told) > 1:
    raise ConfigError(f'{" and ".join(told)} are different commands; give one')
  sweep.parse_resources(_RESOURCES.value)
  if _CHECK.value and not _REPORT.value:
    raise ConfigError('--check belongs to --report=experiments/NAME')
  if unknown := set(_MODELS.value) - set(rescore.MODELS):
    raise ConfigError(
      f'--models {", ".join(sorted(unknown))} is not one of '
      f'{", ".join(rescore.MODELS)}'
    )
  if flags.FLAGS['models'].present and not _overrides('decode'):
    raise ConfigError(
      '--models says what generates, and nothing does without --decode'
    )
  return decode.value.to_dict() if _overrides('decode') else None


def configured() -> tuple[Settings, Path]:
  """The settings and the run folder that the flags mean.

  Raises:
    ConfigError: no --config, no such file, or a wrong value in it.
  """
  folder = config_folder()
  try:
    settings = Settings.from_config(_CONFIG.value)
  except (KeyError, TypeError) as error:
    raise ConfigError(
      f'--config: {_config_file()} has other keys than configs/base.py '
      f'({error})'
    ) from error
  if _WORKDIR.value is not None:
    return settings, Path(_WORKDIR.value)
  return settings, folder / run_id(
    settings.resolved, _overrides('config')
  )


def train(
  settings: Settings, workdir: Path, stop: StopRequest, arguments: Sequence[str]
) -> int:
  """One run, on this host alone or as one of several; the exit code."""
  if hosts := options.places(workdir):
    run_folder.check_unclaimed(workdir)
    started = supervisor.start(hosts, [sys.executable, *arguments])
    ended = supervisor.supervise(started, options.stuck_seconds())
    if ended.words:
      run_folder.note_failure(workdir, settings, 'error', ended.words)
    return ended.code
  if told := in_vain(settings):
    print(told)
  inspect = None
  with run_folder.claimed(workdir):
    if Place.here() is not None or multihost.default_backend() != 'cpu':
      stop.note('pre-flight')
      flight = Preflight(settings, workdir)
      flight.start()
      inspect = flight.data
    finetune.run(settings, workdir, stop, inspect)
  return 0


def dry_run(
  settings: Settings, workdir: Path, arguments: Sequence[str]
) -> None:
  """Says what a run would be, what it takes, and what to type."""
  options.check()
  print(describe(settings, options.devices()))
  for told in filter(None, (settings.note, in_vain(settings))):
    print(f'# {told}')
  kept = options.without_dry_run(arguments)
  print(f'# run folder: {workdir}\n{shlex.join(["python", *kept])}')


def in_vain(settings: Settings) -> str:
  """What was asked for and changes nothing, if anything was."""
  told = unread(settings.resolved, _overrides('config'))
  if not told:
    return ''
  return f'not read   {", ".join(told)}: no part of this run uses it'


def config_folder() -> Path:
  """Where runs of this config file and mode go by default.

  Raises:
    ConfigError: no --config, or no such file.
  """
  if not flags.FLAGS['config'].present:
    raise ConfigError('no --config; try --config=configs/summarize.py:tiny')
  file, _, mode = _config_file().partition(':')
  if not Path(file).is_file():
    raise ConfigError(f'--config: there is no file {file} in {Path.cwd()}')
  # Of a file that could not be read this raises what the system said.
  if not hasattr(_CONFIG.value, 'to_json'):
    raise ConfigError(
      f'--config: get_config of {file} returns a '
      f'{type(_CONFIG.value).__name__}, not a ConfigDict'
    )
  name = '-'.join(part for part in (Path(file).stem, mode) if part)
  return Path('runs') / name


def _config_file() -> str:
  """The value of --config: file and mode."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def run_cells(
  cells: Sequence[sweep.Cell], root: Path, command: sweep.Command
) -> sweep.Outcome:
  """By the engine of the flags.

  Raises:
    ConfigError: flags about hosts that contradict each other.
  """
  resources = sweep.parse_resources(_RESOURCES.value)
  more = options.of_cells(_HOSTS.value)

  def line(cell: sweep.Cell, run: Path) -> list[str]:
    return [*command(cell, run), *more]

  how = _WORKERS.value, _RETRIES.value, _FAIL_FAST.value, line
  if _ENGINE.value == 'ray':
    wanted = sweep.Wanted(resources, _HOSTS.value)
    return sweep.run_on_ray(cells, root, *how, wanted)
  if _HOSTS.value > 1:
    raise ConfigError(
      f'--hosts_per_cell={_HOSTS.value} needs --engine=ray; this machine alone '
      f'rehearses it by --processes={_HOSTS.value}'
    )
  return sweep.run(cells, root, *how)


def run_experiment(folder: Path) -> int:
  """Runs what an experiment declares, or says what that is; the exit code."""
  # These take a second, which other commands need not wait for.
  from pdl_jax.report import carry_out, plan

  declared = plan.load(folder)
  if _DRY_RUN.value:
    groups = [
      (f'{group.title}:', group.root, group.cells)
      for group in carry_out.planned(declared)
    ]
    known = carry_out.recorded(declared, carry_out.read(folder))
    print(sweep.format_dry_run(groups, _WORKERS.value, known))
    return 0
  return 1 if carry_out.carry_out(declared, folder, run_cells) else 0


def show_status(folder: Path) -> None:
  """Of the sweeps and runs below a folder.

  Raises:
    ConfigError: there are none.
  """
  rows = sweep.status(folder) if folder.is_dir() else []
  if not rows:
    raise ConfigError(
      f'--status: there are no runs in {folder}; it takes the folder that run '
      'folders are in, such as runs/summarize'
    )
  print(sweep.format_status(rows))


def show_report(folder: Path) -> None:
  """Of an experiment, or of each below a folder and their index."""
  from pdl_jax.report import index, write

  for each in index.experiments(folder):
    if _CHECK.value:
      print(f'{each}: {write.check(each)} files follow from the records')
    else:
      print('\n'.join(f'wrote {path}' for path in write.write(each)))
  index.write(folder, check=_CHECK.value)


def run_sweep() -> int:
  """Runs the cells of --sweep, or says which they are; the exit code."""
  folder = config_folder()
  root = folder if _WORKDIR.value is None else Path(_WORKDIR.value)
  module = types.ModuleType('config')
  vars(module).update(runpy.run_path(_config_file().partition(':')[0]))
  given = _overrides('config')
  cells = sweep.cells(module, _SWEEP.value, _CONFIG.value, given)
  if _DRY_RUN.value:
    print(sweep.format_dry_run([('', root, cells)], _WORKERS.value, {}))
    return 0

  def command(cell: sweep.Cell, run: Path) -> list[str]:
    return [
      sys.executable, __file__, f'--config={_config_file()}',
      f'--workdir={run}',
      *(f'--config.{key}={value}' for key, value in given.items()),
      *cell.flags,
    ]  # fmt: skip

  outcome = run_cells(cells, root, command)
  print(sweep.format_status(sweep.status(root, cells)))
  return 1 if outcome.failed else 0


def start_pod(pod: pods.Pod, arguments: Sequence[str]) -> None:
  """Starts the run on a pod, or says how."""
  settings, here = configured()
  folder = pods.workdir(pod, here, _WORKDIR.value is not None)
  options.check_alone('--pod')
  pods.check_shipped(settings.model.pretrained)
  kept = pods.without(options.without_dry_run(arguments))
  told = pods.committed(kept, folder)
  plan = pods.plan(pod, told)
  if _DRY_RUN.value:
    if options.devices_are_told():
      print(describe(settings, options.devices()))
    print(pods.to_shell(plan))
  else:
    pods.run(plan)


def _overrides(name: str) -> dict[str, Any]:
  return config_flags.get_override_values(flags.FLAGS[name])


def help_text() -> str:
  """What launch.py does, and all its flags."""
  modules = (sys.argv[0], options.__name__, pods.__name__)
  flags_of = (flags.FLAGS.module_help(module) for module in modules)
  return '\n'.join([__doc__ or '', *filter(None, flags_of)])


def show_preview(settings: Settings, workdir: Path) -> None:
  """On the terminal, and as a page beside where the run would be."""
  ready = prepare.prepare(settings, None)
  examples = ready.train.examples
  chosen = [
    preview.PreviewExample(
      record['id'], spelled(b''.join(map(ready.model.tokenizer.raw, prompt))),
      target,
    )
    for number in pipeline.sample(examples, _PREVIEW_EXAMPLES).tolist()
    for record in [examples.record(number)]
    for prompt, target in [examples.prompt_and_target(number)]
  ]  # fmt: skip
  found = preview.collect(
    settings.loss, ready.tables, ready.frequencies.task, ready.model.tokenizer,
    chosen,
  )  # fmt: skip
  preview.print_terminal(found)
  page = workdir.with_name(f'{workdir.name}.preview.html')
  page.parent.mkdir(parents=True, exist_ok=True)
  page.write_text(preview.to_html(found), 'utf-8')
  print(f'\nthe same with the plot of weight against count: {page}')


def _one_line(error: Exception) -> str:
  """What a parser says, without its traceback."""
  if isinstance(error, KeyError | AttributeError):
    if 'get_config' in str(error):
      return '--config: the file has no function get_config'
    # ml_collections quotes its message once a level: "'alhpa'\nDid you ...".
    text = str(error).replace('\\n', '\n').replace('\\', '')
    key, _, hint = (part.strip(' \'"') for part in text.partition('\n'))
    if key in RENAMED:
      return f'config key {key!r} is called {RENAMED[key]} now'
    hint = f' {hint}' if hint else ''
    return f'unknown config key {key!r}.{hint} (--help_config prints all)'
  return str(error).splitlines()[-1].removeprefix('ValueError: ')


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  process.set_xla_flags()
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # A terminal that lacks a character is no reason to stop.
      stream.reconfigure(errors='backslashreplace')
  stop, settings, workdir, run = StopRequest(), None, None, None
  try:
    if {'--help', '-h', '--helpfull'} & set(arguments[1:]):
      print(help_text())
      return 0
    if '--help_config' in arguments:
      print(keys.text())
      return 0
    decode, pod = parse(arguments), pods.pod()
    run = Path(_EVALUATE.value or _EXPORT.value or os.devnull)
    options.choose_backend()
    if options.devices_are_told() and not _DRY_RUN.value:
      raise ConfigError(
        '--devices says of which machine --dry_run speaks; a run takes all '
        'devices that are there'
      )
    if (own := Place.here()) is not None:
      stop = multihost.join(own)
    if _EVALUATE.value is not None or _EXPORT.value is not None:
      multihost.default_backend()
    if _EVALUATE.value is not None:
      rescore.run(
        Path(_EVALUATE.value), decode, tuple(_MODELS.value), stop,
      )  # fmt: skip
      return 0
    if _EXPORT.value is not None and _TO.value is not None:
      export.run(Path(_EXPORT.value), Path(_TO.value), _ADAPTER.value)
      return 0
    if _STATUS.value is not None:
      show_status(Path(_STATUS.value))
      return 0
    if _REPORT.value is not None:
      show_report(Path(os.path.relpath(_REPORT.value)))
      return 0
    if any('/' in name for name in _SWEEP.value) or (
      _SWEEP.value == ['experiments']
    ):
      return run_experiment(Path(os.path.relpath(','.join(_SWEEP.value))))
    if _SWEEP.value:
      return run_sweep()
    if pod is not None:
      start_pod(pod, arguments[1:])
      return 0
    multihost.default_backend()
    settings, workdir = configured()
    if _DRY_RUN.value:
      dry_run(settings, workdir, arguments)
      return 0
    if _PREVIEW.value:
      show_preview(settings, workdir)
    else:
      return train(settings, workdir, stop, arguments)
  except PdlError as error:
    return _report(error, settings, workdir)
  except OSError as error:
    # Whatever the operating system refuses: a full disk, a read-only folder.
    where = f' ({error.filename})' if error.filename else ''
    hint = ''
    if workdir is not None:
      hint = f', with --workdir={workdir}; free space there or choose another'
    return _report(
      HostError(f'{error.strerror or error}{where}{hint}'),
      settings,
      workdir,
    )
  except (SystemExit, KeyboardInterrupt):
    raise
  except BaseException as error:
    # Panics of Rust are no Exception. Whatever it is, it ends in one line.
    return _report(fault.explain(error, workdir or run), settings, workdir)
  return 0


def _report(
  error: PdlError, settings: Settings | None, workdir: Path | None
) -> int:
  """One line for the person, one field for whoever reads status.json."""
  word = 'stopped' if isinstance(error, PreemptedError) else 'error'
  told = printable(str(error))
  print(f'{word}: {told}', file=sys.stderr)
  if settings is not None and workdir is not None:
    run_folder.note_failure(workdir, settings, word, told)
  return error.exit_code


if __name__ == '__main__':
  if Place.here() is None:
    sys.exit(main(sys.argv))
  multihost.leave(lambda: main(sys.argv))
