"""What clouds that are reached by ssh have in common."""

import shlex
from collections.abc import Callable

from pdl_jax.cluster.pods.plan import Command, Step
from pdl_jax.cluster.pods.pod import MOUNT, Pod
from pdl_jax.cluster.pods.training import Training

_STOP = 'pkill -TERM --pidfile /tmp/pdl_jax.pid'


def later(
  pod: Pod,
  training: Training,
  first: Callable[[str], Command],
  delete: tuple[Command, ...],
) -> dict[str, tuple[Command, ...]]:
  """What one does afterwards with machines that cost until they are deleted.

  Args:
    first: a shell line -> the command that runs it on the first host.
    delete: that delete the machines.
  """
  found: dict[str, tuple[Command, ...]] = {
    'see the logs of all hosts': (first(training.tail),),
    'stop it, so that it saves first': (first(_STOP),),
    'resume it on these machines': (training.again(pod.there.flags),),
  }
  if pod.made:
    name = 'resume it on new machines, if these were preempted'
    found[name] = (*delete, training.again(pod.flags))
  return found | {'delete the machines, which cost until then': delete}


def mounted(pod: Pod, on_all: Callable[[str, str], Step]) -> tuple[Step, ...]:
  """The step that mounts --share on all hosts, if that was said."""
  if not pod.share:
    return ()
  line = shlex.join(('bash', 'pdl_jax/cluster/pods/mount.sh', pod.share, MOUNT))
  return (on_all('mount what the hosts share', line),)


def install(training: Training, extra: str) -> str:
  """A shell line that unpacks the shipped code and installs its packages."""
  unpack = shlex.join(('tar', '-xzf', training.packed.name))
  script = training.script('setup.sh', extra)
  return f'{unpack} && {in_code(training, script)}'


def in_code(training: Training, line: str) -> str:
  """A shell line, from the folder of the code."""
  return f'cd {shlex.quote(training.code)} && {line}'


def zone(pod: Pod) -> tuple[str, str]:
  """Flags of every command of gcloud about machines."""
  # Nobody is there to answer a question.
  return f'--zone={pod.zone}', '--quiet'
