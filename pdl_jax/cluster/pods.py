"""Defines the flags of pods: rented machines that run one training together.

Each kind has a template, pods/KIND.sh, which pod_plan.py fills in, and a
section of docs/pods.md.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from pdl_jax.cluster import options
from pdl_jax.errors import ConfigError

# Where the hosts of Compute Engine and Cloud TPU mount --share.
MOUNT = '/mnt/shared'
# docs.cloud.google.com/tpu/docs/runtimes; older TPUs share the last one.
_RUNTIMES = {
  'v6e': 'v2-alpha-tpuv6e', 'v5p': 'v2-alpha-tpuv5',
  'v5litepod': 'v2-alpha-tpuv5-lite', '': 'tpu-ubuntu2204-base',
}  # fmt: skip


class _Kind(NamedTuple):
  needed: tuple[str, ...]
  optional: tuple[str, ...]
  longest_name: int


# These say how machines are made; a command for existing machines lacks them.
OF_NEW = ('accelerator', 'image', 'capacity')
_MADE = (*OF_NEW, 'share')
_KINDS = {
  'tpu-vm': _Kind(('zone',), _MADE, 60),
  'queued-resource': _Kind(('zone',), _MADE, 60),
  'mig': _Kind(('zone', 'hosts'), _MADE, 60),
  # xpk names Kubernetes objects after a workload, which leaves it 40 letters.
  'xpk': _Kind(('zone', 'cluster', 'accelerator', 'share'), ('image',), 40),
  'slurm': _Kind(('accelerator', 'hosts'), (), 200),
}

flags.DEFINE_string(
  'pod', None, 'Train on machines of this name; docs/pods.md.'
)
flags.DEFINE_enum(
  'pod_kind', 'tpu-vm', list(_KINDS), 'With --pod: who gives the machines.'
)
flags.DEFINE_string('zone', '', 'With --pod: of Google Cloud.')
flags.DEFINE_string(
  'accelerator', '',
  'With --pod: v5litepod-16; machine type of a mig; GPUs of a Slurm node. '
  'Without it, machines of that name are taken as they are.',
)  # fmt: skip
flags.DEFINE_integer(
  'hosts', 0, 'With --pod: machines of a mig or Slurm job.', lower_bound=0
)
flags.DEFINE_string(
  'image', '',
  'With --pod: runtime version of a TPU, PROJECT/FAMILY of a mig, base docker '
  'image of xpk.',
)  # fmt: skip
flags.DEFINE_string(
  'share', '',
  f'With --pod: IP:/EXPORT or gs://BUCKET, which all hosts mount at {MOUNT}; '
  'a storage of xpk.',
)  # fmt: skip
flags.DEFINE_enum(
  'capacity', None, ('on-demand', 'spot', 'reserved'),
  'With --pod: how machines are bought.',
)  # fmt: skip
flags.DEFINE_string('cluster', '', 'With --pod: of xpk.')


@dataclasses.dataclass(frozen=True)
class Pod:
  """The values of the flags above; '' and 0 are flags not given."""

  pod_kind: str
  pod: str
  zone: str = ''
  accelerator: str = ''
  hosts: int = 0
  image: str = ''
  share: str = ''
  capacity: str = ''
  cluster: str = ''

  def __post_init__(self):
    """Raises ConfigError for flags that are missing, unread or malformed."""
    kind = _KINDS[self.pod_kind]
    if missing := [name for name in kind.needed if not getattr(self, name)]:
      raise ConfigError(f'--pod_kind={self.pod_kind} needs {_named(missing)}')
    known = ('pod_kind', 'pod', *kind.needed, *kind.optional)
    if unread := [x for x in _FLAGS if getattr(self, x) and x not in known]:
      raise ConfigError(
        f'--pod_kind={self.pod_kind} does not read {_named(unread)}'
      )
    legal = re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', self.pod)
    if not legal or len(self.pod) > kind.longest_name:
      raise ConfigError(
        f'--pod={self.pod} has to be lower case letters, digits and hyphens, '
        f'begin with a letter and be at most {kind.longest_name} long'
      )
    self._check_made()
    mounted = self.share and self.pod_kind != 'xpk'
    if mounted and not re.fullmatch('gs://[^/]+|[^/:]+:/[^/].*', self.share):
      raise ConfigError(
        f'--share={self.share} is neither IP:/EXPORT of a file server nor '
        'gs://BUCKET'
      )

  def _check_made(self) -> None:
    kind, accelerator = self.pod_kind, self.accelerator
    if not accelerator and (self.image or self.capacity):
      raise ConfigError(
        f'--{"image" if self.image else "capacity"} says how machines are '
        'made, and without --accelerator those that exist are used'
      )
    tpu = accelerator and kind in ('tpu-vm', 'queued-resource')
    if tpu and not re.fullmatch(r'v[0-9][a-z]*-[0-9]+', accelerator):
      raise ConfigError(
        f'--accelerator={accelerator} is no accelerator type of the Cloud '
        'TPU API, such as v5litepod-16 or v6e-16; from TPU7x on take '
        '--pod_kind=xpk'
      )
    if kind == 'mig' and accelerator and self.image.count('/') != 1:
      raise ConfigError(
        '--pod_kind=mig needs --image=PROJECT/FAMILY with NVIDIA drivers, as '
        'in --image=deeplearning-platform-release/FAMILY'
      )
    if kind == 'mig' and self.capacity == 'reserved':
      raise ConfigError(
        '--capacity=reserved: Compute Engine takes a matching reservation '
        'by itself; leave it out'
      )
    if kind == 'slurm' and not re.fullmatch('(.*:)?[1-9][0-9]*', accelerator):
      raise ConfigError(
        f'--accelerator={accelerator} is not the GPUs of a Slurm node, '
        'as in 8 or h100:8'
      )

  @property
  def runtime(self) -> str:
    """Returns the image or its default; of a TPU the runtime version."""
    series = self.accelerator.partition('-')[0]
    default = _RUNTIMES.get(series, _RUNTIMES[''])
    return self.image or ('python:3.12' if self.pod_kind == 'xpk' else default)

  def flags(self, without: tuple[str, ...] = ()) -> list[str]:
    """Lists the flags that give this pod, except for some."""
    return [
      f'--{name}={value}' for name, value in dataclasses.asdict(self).items()
      if value and name not in without
    ]  # fmt: skip


_FLAGS = tuple(field.name for field in dataclasses.fields(Pod))


def _named(names: Sequence[str]) -> str:
  return ', '.join(f'--{name}' for name in names)


def pod() -> Pod | None:
  """Makes the pod that the flags describe; None without --pod."""
  told = {name: flags.FLAGS[name] for name in _FLAGS}
  if told['pod'].value is None:
    if alone := [name for name, flag in told.items() if flag.present]:
      raise ConfigError(f'--{alone[0]} belongs to --pod=NAME')
    return None
  given = {name: flag.value for name, flag in told.items() if flag.value}
  return Pod(**{'pod': '', **given})


def check_shipped(pretrained: str) -> None:
  """Refuses a model that the hosts will not find."""
  _, _, place = pretrained.rpartition(':')
  if '/' in place and not Path(place).is_absolute():
    raise ConfigError(
      f'--pod ships no models: model.pretrained {pretrained} has to be below '
      f'a folder that all hosts see, as in {MOUNT}/{place}'
    )


def check_slices(kind: str, slices: int) -> None:
  """Refuses several slices where a pod is a single TPU."""
  if slices > 1 and kind in ('tpu-vm', 'queued-resource'):
    raise ConfigError(
      f'a TPU of --pod_kind={kind} is one slice; mesh.slices {slices} needs '
      '--pod_kind=xpk, which makes as many'
    )


def without(arguments: Sequence[str]) -> list[str]:
  """Drops the flags of the pod and --workdir from arguments."""
  return options.without(arguments, (*_FLAGS, 'workdir'))


def workdir(pod: Pod, here: Path, given: bool) -> Path:
  """Returns the run folder as the hosts see it.

  `here` is the run folder on this machine, `given` whether it is --workdir.
  """
  if pod.pod_kind == 'slurm':
    return Path.cwd() / here
  if pod.pod_kind == 'xpk':
    if given and here.is_absolute():
      return here
    raise ConfigError(
      '--pod_kind=xpk needs --workdir=FOLDER below the mount point of '
      f'the storage {pod.share}'
    )
  if given and Path(MOUNT) not in here.parents:
    raise ConfigError(
      f'--workdir={here} has to be below {MOUNT}, which all hosts see'
    )
  return Path(MOUNT) / here  # Equals `here` if that is absolute.
