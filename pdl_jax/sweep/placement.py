"""Which machines of a Ray cluster a cell is given: one, or several at once.

Several are a placement group, all of it or nothing: of different machines, or
for TPU the hosts of one slice.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pdl_jax.errors import HostError

# Seconds for a slice that looks free; another sweep may be faster.
_PATIENCE = 10.0


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a cell takes.

  Attributes:
    resources: of each of its machines, by Ray's names.
    hosts: how many machines.
  """

  resources: Mapping[str, float]
  hosts: int = 1

  @property
  def is_slice(self) -> bool:
    """Whether the machines must be those of one TPU slice."""
    return self.hosts > 1 and 'TPU' in self.resources

  def options(self) -> dict[str, Any]:
    """Of a task on one of the machines."""
    tpu = {k: v for k, v in self.resources.items() if k == 'TPU'}
    return {
      'num_cpus': self.resources['CPU'],
      'num_gpus': self.resources.get('GPU', 0),
      'resources': tpu,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Placed:
  """Machines, or the promise of them.

  Attributes:
    options: of the task on each.
    release: gives them back; ends what runs there.
  """

  options: list[dict[str, Any]]
  release: Callable[[], None]


def check_fits(ray: ModuleType, wanted: Wanted) -> None:
  """Whether the cluster can ever run a cell.

  Raises:
    HostError: too few machines, or no slice, have what a cell takes.
  """
  if wanted.is_slice:
    _slice_kind(ray, wanted)
    return
  machines = [node['Resources'] for node in ray.nodes() if node['Alive']]
  fit = [
    all(has.get(name, 0) >= number for name, number in wanted.resources.items())
    for has in machines
  ].count(True)
  if fit < wanted.hosts:
    asks = f', and --hosts_per_cell={wanted.hosts}' if wanted.hosts > 1 else ''
    some = f'{fit or "none"} of the {len(machines)} machines'
    raise HostError(
      f'{some} of the Ray cluster {"has" if fit < 2 else "have"} '
      f'{_words(wanted)}, which --resources asks for a cell{asks}'
    )


def _words(wanted: Wanted) -> str:
  return ' '.join(f'{name}={n:g}' for name, n in wanted.resources.items())


def _slice_kind(ray: ModuleType, wanted: Wanted) -> tuple[str, str]:
  """Topology and version of slices with so many hosts of so many chips."""
  slices: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
  for node in ray.nodes():
    if node['Alive'] and (name := node['Labels'].get('ray.io/tpu-slice-name')):
      slices[name].append(node)
  chips = wanted.resources['TPU']
  for hosts in slices.values():
    fits = [host['Resources'].get('TPU') == chips for host in hosts]
    if all(fits) and len(fits) == wanted.hosts:
      labels = hosts[0]['Labels']
      version = labels['ray.io/tpu-pod-type'].partition('-')[0]
      return labels['ray.io/tpu-topology'], version
  there = ', '.join(
    f'{name}: {len(hosts)} of TPU={hosts[0]["Resources"].get("TPU", 0):g}'
    for name, hosts in sorted(slices.items())
  )
  raise HostError(
    f'no TPU slice of the Ray cluster has {wanted.hosts} hosts of '
    f'TPU={chips:g}, as --hosts_per_cell and --resources ask for a cell; '
    f'there are {there or "none"}'
  )


def place(ray: ModuleType, wanted: Wanted) -> Placed | None:
  """Asks for machines; None while no slice is free.

  Raises:
    HostError: Ray refuses to reserve what the cluster says that it has.
  """
  if wanted.hosts == 1:
    return Placed([wanted.options()], lambda: None)
  if wanted.is_slice:
    reserved = _reserve_slice(ray, wanted)
    if reserved is None:
      return None
    group, release = reserved
  else:
    group = ray.util.placement_group(
      [dict(wanted.resources)] * wanted.hosts, strategy='STRICT_SPREAD'
    )
    release = functools.partial(ray.util.remove_placement_group, group)
  strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
  return Placed(
    [
      {**wanted.options(), 'scheduling_strategy': strategy(group, number)}
      for number in range(wanted.hosts)
    ],
    release,
  )


def _reserve_slice(
  ray: ModuleType, wanted: Wanted
) -> tuple[Any, Callable[[], None]] | None:
  """A whole free slice: its placement group, and how to give it back."""
  from ray.util import tpu

  try:
    topology, version = _slice_kind(ray, wanted)
  except HostError:
    # A slice that lost a host since the start of the sweep may come back.
    return None
  try:
    if not tpu.get_num_ready_tpu_slices(topology, version):
      return None
    held = tpu.SlicePlacementGroup(
      topology, version, dict(wanted.resources), strategy='STRICT_SPREAD',
      chips_per_vm=int(wanted.resources['TPU']),
      head_reservation_timeout_s=_PATIENCE,
    )  # fmt: skip
  except TimeoutError:
    return None  # Another sweep was faster.
  except (ValueError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0]
    raise HostError(
      f'Ray cannot reserve a TPU slice {version}, {topology}: {reason}'
    ) from error
  return held.slice_placement_group, held.shutdown
