"""The flags of a pod, and the command line without them."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pdl_jax.cluster.pods import pod as pods
from pdl_jax.errors import ConfigError

_POD = flags.DEFINE_string(
  'pod', None, 'Train on machines of this name; docs/pods.md.'
)
_KIND = flags.DEFINE_enum(
  'pod_kind', pods.KINDS[0], pods.KINDS, 'With --pod: who gives the machines.'
)
_ZONE = flags.DEFINE_string('zone', '', 'With --pod: of Google Cloud.')
_ACCELERATOR = flags.DEFINE_string(
  'accelerator', '',
  'With --pod: v5litepod-16; machine type of a mig; GPUs of a Slurm node. '
  'Without it, machines of that name are taken as they are.',
)  # fmt: skip
_HOSTS = flags.DEFINE_integer(
  'hosts', 0, 'With --pod: machines of a mig or Slurm job.', lower_bound=0
)
_IMAGE = flags.DEFINE_string(
  'image', '',
  'With --pod: runtime version of a TPU, PROJECT/FAMILY of a mig, base docker '
  'image of xpk.',
)  # fmt: skip
_SHARE = flags.DEFINE_string(
  'share', '',
  f'With --pod: IP:/EXPORT or gs://BUCKET, which all hosts mount at '
  f'{pods.MOUNT}; a storage of xpk.',
)  # fmt: skip
_CAPACITY = flags.DEFINE_enum(
  'capacity', None, pods.CAPACITIES, 'With --pod: how machines are bought.'
)
_CLUSTER = flags.DEFINE_string('cluster', '', 'With --pod: of xpk.')
_ALL = (
  _POD, _KIND, _ZONE, _ACCELERATOR, _HOSTS, _IMAGE, _SHARE, _CAPACITY, _CLUSTER
)  # fmt: skip


def pod() -> pods.Pod | None:
  """That the flags describe, or None without --pod.

  Raises:
    ConfigError: it lacks something, or has something that it does not read.
  """
  if _POD.value is None:
    given = [flag.name for flag in _ALL if flags.FLAGS[flag.name].present]
    if given:
      raise ConfigError(f'--{given[0]} belongs to --pod=NAME')
    return None
  return pods.Pod(
    kind=_KIND.value, name=_POD.value, zone=_ZONE.value,
    accelerator=_ACCELERATOR.value, hosts=_HOSTS.value, image=_IMAGE.value,
    share=_SHARE.value, capacity=_CAPACITY.value or '', cluster=_CLUSTER.value,
  )  # fmt: skip


def check_shipped(pretrained: str) -> None:
  """Refuses a model that the hosts will not find.

  Raises:
    ConfigError: it is in a folder beside the code, which is not shipped.
  """
  _, _, place = pretrained.rpartition(':')
  if '/' in place and not Path(place).is_absolute():
    raise ConfigError(
      f'--pod ships no models: model.pretrained {pretrained} has to be below '
      f'a folder that all hosts see, as in {pods.MOUNT}/{place}'
    )


def without(arguments: Sequence[str]) -> list[str]:
  """Arguments but for those of the pod and --workdir."""
  named = {flag.name for flag in _ALL} | {'workdir'}
  kept: list[str] = []
  rest = iter(arguments)
  for argument in rest:
    name, equals, _ = argument.lstrip('-').partition('=')
    if not argument.startswith('-') or name not in named:
      kept.append(argument)
    elif not equals:
      next(rest)  # Its value stands by itself.
  return kept


def workdir(pod: pods.Pod, here: Path, given: bool) -> Path:
  """The run folder as the hosts see it.

  Args:
    here: as it would be on this machine.
    given: whether by --workdir.

  Raises:
    ConfigError: it is on no disk that the hosts share.
  """
  if pod.kind == 'slurm':
    return Path.cwd() / here
  mount = Path(pods.MOUNT)
  if not given and pod.kind != 'xpk':
    return mount / here
  if pod.kind == 'xpk' and not (given and here.is_absolute()):
    raise ConfigError(
      '--pod_kind=xpk needs --workdir=FOLDER below the mount point of '
      f'the storage {pod.share}'
    )
  if pod.kind != 'xpk' and mount not in here.parents:
    raise ConfigError(
      f'--workdir={here} has to be below {mount}, which all hosts see'
    )
  return here
