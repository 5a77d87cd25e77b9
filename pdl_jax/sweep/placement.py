"""Chooses the machines of a Ray cluster that a cell takes: one or several.

They form a placement group, granted as a whole: on different machines, or for
TPU on the hosts of one slice. The slice is named here. Ray would choose it by
its first host alone, while the others may be lost or busy.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from pdl_jax.errors import HostError, reason

_SLICE, _WORKER = 'ray.io/tpu-slice-name', 'ray.io/tpu-worker-id'

Machine = Mapping[str, float]  # resource -> amount


@dataclasses.dataclass(frozen=True)
class Wanted:
  """The machines that a cell takes."""

  resources: Mapping[str, float]  # Ray's name -> amount per machine
  hosts: int = 1

  def __str__(self) -> str:
    """Names it, as in '2 x CPU=1 TPU=4'."""
    return f'{self.hosts} x {_words(self.resources)}'

  @property
  def is_slice(self) -> bool:
    """Whether the machines must be those of one TPU slice."""
    return self.hosts > 1 and 'TPU' in self.resources

  def fits(self, machines: Sequence[Machine]) -> bool:
    """Whether a cell can run on some of them, or on all as a slice."""
    enough = [
      all(machine.get(name, 0) >= n for name, n in self.resources.items())
      for machine in machines
    ]
    if not self.is_slice:
      return enough.count(True) >= self.hosts
    chips = {machine.get('TPU') for machine in machines}
    size = {self.resources['TPU']}
    return all(enough) and len(machines) == self.hosts and chips == size


def slices(ray: ModuleType, wanted: Wanted) -> list[str]:
  """Lists the slices that fit a cell, busy or not; [''] if it needs none."""
  groups: defaultdict[str, list[Machine]] = defaultdict(list)
  for node in ray.nodes():
    name = node['Labels'].get(_SLICE) if wanted.is_slice else ''
    if node['Alive'] and name is not None:
      groups[name].append(node['Resources'])
  found = sorted(groups.items())
  if fit := [name for name, machines in found if wanted.fits(machines)]:
    return fit
  kind = 'has no TPU slice of' if wanted.is_slice else 'does not have'
  there = '; '.join(
    f'{name}: ' * bool(name) + _count(machines, wanted)
    for name, machines in found
  )
  raise HostError(
    f'the Ray cluster {kind} {wanted}, which a cell takes by --hosts_per_cell '
    f'and --resources; there are {there or "none"}'
  )


def _count(machines: Sequence[Machine], wanted: Wanted) -> str:
  counts = Counter(
    _words({name: machine.get(name, 0) for name in wanted.resources})
    for machine in machines
  )
  return ', '.join(f'{count} x {words}' for words, count in counts.items())


def _words(resources: Mapping[str, float]) -> str:
  return ' '.join(f'{name}={n:g}' for name, n in resources.items())


def reserve(ray: ModuleType, wanted: Wanted, slice_name: str) -> Any:
  """Asks for machines, and returns Ray's placement group, ready or not."""
  # Process i of a TPU run is on host i of the slice.
  hosts = [
    {_SLICE: slice_name, _WORKER: str(number)} for number in range(wanted.hosts)
  ]
  try:
    return ray.util.placement_group(
      [dict(wanted.resources)] * wanted.hosts,
      strategy='STRICT_SPREAD',
      bundle_label_selector=hosts if slice_name else None,
    )
  except ValueError as error:
    raise HostError(
      f'Ray cannot reserve {wanted}: {reason(error)}'
    ) from error


def task_options(
  ray: ModuleType, wanted: Wanted, group: Any
) -> list[dict[str, Any]]:
  """Returns Ray's options of a task on each machine of a group."""
  strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
  resources = dict(wanted.resources)
  cpus, gpus = resources.pop('CPU'), resources.pop('GPU', 0)
  return [
    {
      'num_cpus': cpus,
      'num_gpus': gpus,
      'resources': resources,
      'scheduling_strategy': strategy(group, number),
      'max_retries': 0,  # After a death, the claim decides when to retry.
    }
    for number in range(wanted.hosts)
  ]
