"""Makes a run, here or on a pod, or a sweep of runs: the nameless command."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pdl_jax.cli import given, sweep
from pdl_jax.cli.explained import explained
from pdl_jax.cluster import options, pods
from pdl_jax.errors import ConfigError

if TYPE_CHECKING:
  from pdl_jax.config import Settings
  from pdl_jax.train.preemption import StopRequest

PAGE = """
--dry_run says configuration, memory of a device and command of a run, or what
a sweep or a pod would be. --multihost makes this one of several hosts, each
with the same command; --processes rehearses that here.
--sweep runs the product of axes, each cell a run of its own; the same command
again runs what is missing. An axis is a generator of the config file, or a key
and its values. --engine=ray does it on the cluster that RAY_ADDRESS names,
where a cell can be one run on several machines, which --processes rehearses
here.
--pod starts the run on a TPU or GPU cluster; --dry_run prints the commands.
docs/pods.md has the kinds of clusters and their flags.
"""


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  given.read('', arguments)
  pod = pods.pod()
  if pod is not None and given.SWEEP.value:
    raise ConfigError('--sweep and --pod are different commands; give one')
  told = [name for name in options.OF_DRY_RUN if flags.FLAGS[name].present]
  if told and not given.DRY_RUN.value:
    raise ConfigError(
      f'--{told[0]} says of which machine --dry_run speaks; a run takes all '
      'devices that are there'
    )
  if given.SWEEP.value:
    return sweep.main(arguments)
  if pod is not None:
    return _start_pod(pod, arguments[1:])
  from pdl_jax.cluster import multihost

  stop = given.begin()
  multihost.default_backend()
  settings, workdir = given.configured()
  with explained(workdir, settings):
    if given.DRY_RUN.value:
      return _dry_run(settings, workdir, arguments)
    return _train(settings, workdir, stop, arguments)


def _train(
  settings: 'Settings',
  workdir: Path,
  stop: 'StopRequest',
  arguments: Sequence[str],
) -> int:
  from pdl_jax import run_claim, run_folder
  from pdl_jax.cluster import multihost, supervisor
  from pdl_jax.cluster.preflight import Preflight
  from pdl_jax.run import finetune

  if hosts := options.places(workdir):
    run_claim.check_unclaimed(workdir)
    started = supervisor.start(hosts, [sys.executable, *arguments])
    ended = supervisor.supervise(started, options.STUCK_SECONDS.value)
    if ended.words:
      run_folder.note_failure(workdir, settings, 'error', ended.words)
    return ended.code
  if told := _in_vain(settings):
    print(told)
  inspect = None
  with run_claim.claimed(workdir):
    own = multihost.Place.here()
    if own is not None or multihost.default_backend() != 'cpu':
      stop.note('pre-flight')
      flight = Preflight(settings, workdir)
      flight.start()
      inspect = flight.data
    finetune.run(settings, workdir, stop, inspect)
  return 0


def _dry_run(
  settings: 'Settings', workdir: Path, arguments: Sequence[str]
) -> int:
  from pdl_jax.cli.dry_run import describe

  options.check()
  print(describe(settings, options.devices(), options.TOPOLOGY.value))
  for told in filter(None, (settings.note, _in_vain(settings))):
    print(f'# {told}')
  kept = options.without_dry_run(arguments)
  print(f'# run folder: {workdir}\n{shlex.join(["python", *kept])}')
  return 0


def _in_vain(settings: 'Settings') -> str:
  """Names settings that were given and change nothing, if any."""
  from pdl_jax.config import unread

  told = unread(settings.resolved, given.overrides('config'))
  if not told:
    return ''
  return f'not read   {", ".join(told)}: no part of this run uses it'


def _start_pod(pod: pods.Pod, arguments: Sequence[str]) -> int:
  from pdl_jax.cli.dry_run import describe
  from pdl_jax.cluster import pod_plan

  given.begin()
  settings, here = given.configured()
  folder = pods.workdir(pod, here, given.WORKDIR.value is not None)
  options.check_alone('--pod')
  pods.check_shipped(settings.model.pretrained)
  pods.check_slices(pod.pod_kind, settings.mesh.slices)
  kept = pods.without(options.without_dry_run(arguments))
  plan = pod_plan.make(
    pod, pod_plan.committed(kept, folder, settings.mesh.slices)
  )
  if given.DRY_RUN.value:
    if options.DEVICES.value or options.TOPOLOGY.value:
      print(describe(settings, options.devices(), options.TOPOLOGY.value))
    print(pod_plan.to_shell(plan))
  else:
    pod_plan.run(plan)
  return 0
