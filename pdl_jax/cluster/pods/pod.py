"""A pod: machines that run one training together, by whom they are given."""

import dataclasses
import re

from pdl_jax.errors import ConfigError

# Where the hosts of Compute Engine and Cloud TPU mount --share.
MOUNT = '/mnt/shared'
# docs.cloud.google.com/tpu/docs/runtimes; older TPUs share the last one.
_RUNTIMES = {
  'v6e': 'v2-alpha-tpuv6e', 'v5p': 'v2-alpha-tpuv5',
  'v5litepod': 'v2-alpha-tpuv5-lite', '': 'tpu-ubuntu2204-base',
}  # fmt: skip
# xpk names Kubernetes objects after a workload, which leaves it 40 letters.
_LONGEST = {'xpk': 40, 'slurm': 200}
_GOOGLE_LONGEST = 60


@dataclasses.dataclass(frozen=True)
class _Fields:
  """What a kind of pod has to be told, and what it may be."""

  needed: tuple[str, ...]
  optional: tuple[str, ...] = ()


_MADE = ('accelerator', 'image', 'share', 'capacity')
_FIELDS = {
  'tpu-vm': _Fields(('zone',), _MADE),
  'queued-resource': _Fields(('zone',), _MADE),
  'mig': _Fields(('zone', 'hosts'), _MADE),
  'xpk': _Fields(('zone', 'cluster', 'accelerator', 'share'), ('image',)),
  'slurm': _Fields(('accelerator', 'hosts')),
}
KINDS = tuple(_FIELDS)
CAPACITIES = ('on-demand', 'spot', 'reserved')


@dataclasses.dataclass(frozen=True)
class Pod:
  """What the flags say; '' and 0 are what was not said.

  Attributes:
    kind: of KINDS.
    name: of the TPU, queued resource, instance group, workload or job.
    zone: of the machines, or of the cluster of xpk.
    accelerator: type of a TPU, machine type of a mig, GPUs of a Slurm node
      (8, or h100:8); '' where the machines exist and are taken as they are.
    hosts: machines, where the accelerator does not say how many.
    image: runtime version of a TPU, PROJECT/FAMILY of a mig, base docker image
      of xpk.
    share: what all hosts see: IP:/EXPORT or gs://BUCKET, mounted at MOUNT; the
      name of a storage of xpk's cluster.
    capacity: of CAPACITIES, '' meaning the first.
    cluster: that xpk finds by this name.
  """

  kind: str
  name: str
  zone: str = ''
  accelerator: str = ''
  hosts: int = 0
  image: str = ''
  share: str = ''
  capacity: str = ''
  cluster: str = ''

  def __post_init__(self):
    """Raises ConfigError for what is missing, unread or malformed."""
    fields = _FIELDS[self.kind]
    if missing := [name for name in fields.needed if not getattr(self, name)]:
      raise ConfigError(
        f'--pod_kind={self.kind} needs {", ".join(map(_flag, missing))}'
      )
    known = ('kind', 'name', *fields.needed, *fields.optional)
    given = [each.name for each in dataclasses.fields(self)]
    unread = [name for name in given if getattr(self, name)]
    if unread := [name for name in unread if name not in known]:
      raise ConfigError(
        f'--pod_kind={self.kind} does not read '
        f'{", ".join(map(_flag, unread))}'
      )
    self._check_name()
    self._check_made()
    self._check_share()

  def _check_name(self) -> None:
    longest = _LONGEST.get(self.kind, _GOOGLE_LONGEST)
    legal = re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', self.name)
    if not legal or len(self.name) > longest:
      raise ConfigError(
        f'--pod={self.name} has to be lower case letters, digits and hyphens, '
        f'begin with a letter and be at most {longest} long'
      )

  def _check_made(self) -> None:
    """Of flags that say how machines are made."""
    if not self.accelerator and (self.image or self.capacity):
      name = 'image' if self.image else 'capacity'
      raise ConfigError(
        f'{_flag(name)} says how machines are made, and without --accelerator '
        'those that exist are used'
      )
    tpu = self.kind in ('tpu-vm', 'queued-resource') and self.accelerator
    if tpu and not re.fullmatch(r'v[0-9][a-z]*-[0-9]+', self.accelerator):
      raise ConfigError(
        f'--accelerator={self.accelerator} is no accelerator type of the Cloud '
        'TPU API, such as v5litepod-16 or v6e-16; from TPU7x on take '
        '--pod_kind=xpk'
      )
    if self.kind == 'mig' and self.accelerator and self.image.count('/') != 1:
      raise ConfigError(
        '--pod_kind=mig needs --image=PROJECT/FAMILY with NVIDIA drivers, as '
        'in --image=deeplearning-platform-release/FAMILY'
      )
    if self.kind == 'mig' and self.capacity == 'reserved':
      raise ConfigError(
        '--capacity=reserved: Compute Engine takes a matching reservation '
        'by itself; leave it out'
      )
    if self.kind == 'slurm' and not self.accelerators_a_host:
      raise ConfigError(
        f'--accelerator={self.accelerator} is not the GPUs of a Slurm node, '
        'as in 8 or h100:8'
      )

  def _check_share(self) -> None:
    if self.kind in ('xpk', 'slurm') or not self.share:
      return
    if not re.fullmatch(r'gs://[^/]+|[^/:]+:/[^/].*', self.share):
      raise ConfigError(
        f'--share={self.share} is neither IP:/EXPORT of a file server nor '
        'gs://BUCKET'
      )

  @property
  def accelerators_a_host(self) -> int:
    """Of a Slurm node; 0 if that is not said."""
    number = self.accelerator.rpartition(':')[2]
    return int(number) if re.fullmatch('[1-9][0-9]*', number) else 0

  @property
  def made(self) -> bool:
    """Whether machines are made before, and cost until they are deleted."""
    return bool(self.accelerator) and self.kind not in ('xpk', 'slurm')

  @property
  def runtime(self) -> str:
    """The runtime version of a TPU."""
    series = self.accelerator.partition('-')[0]
    return self.image or _RUNTIMES.get(series, _RUNTIMES[''])

  @property
  def there(self) -> 'Pod':
    """The same once its machines exist."""
    if not self.made:
      return self
    return dataclasses.replace(self, accelerator='', image='', capacity='')

  @property
  def flags(self) -> list[str]:
    """That give this pod."""
    given = dataclasses.asdict(self)
    return [f'{_flag(name)}={given[name]}' for name in given if given[name]]


def _flag(name: str) -> str:
  return {'name': '--pod', 'kind': '--pod_kind'}.get(name, f'--{name}')
