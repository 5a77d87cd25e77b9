"""Which machines of a Ray cluster a cell is given: one, or several at once.

Several are a placement group, all of it or nothing: of different machines, or
for TPU the hosts of one slice, which is named. Ray would choose it by its first
host alone, whose others may be lost or busy.
"""

import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pdl_jax.errors import HostError

# Seconds for a slice that looks free, and how long it is left alone after that.
_PATIENCE = 10.0
_PAUSE = 60.0
# Seconds for lost machines to come back, where those left can run no cell.
_RETURN = 1800.0
_SLICE = 'ray.io/tpu-slice-name'


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
    late: says that the promise was not kept in time, or '' while it may be.
  """

  options: list[dict[str, Any]]
  release: Callable[[], None]
  late: Callable[[], str] = lambda: ''


def check_fits(ray: ModuleType, wanted: Wanted) -> None:
  """Whether the cluster can ever run a cell.

  Raises:
    HostError: too few machines, or no slice, have what a cell takes.
  """
  if wanted.is_slice:
    _whole_slices(ray, wanted)
    return
  machines = [node['Resources'] for node in ray.nodes() if node['Alive']]
  fit = [_has(machine, wanted) for machine in machines].count(True)
  if fit < wanted.hosts:
    asks = f', and --hosts_per_cell={wanted.hosts}' if wanted.hosts > 1 else ''
    some = f'{fit or "none"} of the {len(machines)} machines'
    raise HostError(
      f'{some} of the Ray cluster {"has" if fit < 2 else "have"} '
      f'{_words(wanted)}, which --resources asks for a cell{asks}'
    )


def _words(wanted: Wanted) -> str:
  return ' '.join(f'{name}={n:g}' for name, n in wanted.resources.items())


def _has(machine: Mapping[str, float], wanted: Wanted) -> bool:
  return all(machine.get(name, 0) >= n for name, n in wanted.resources.items())


def _whole_slices(ray: ModuleType, wanted: Wanted) -> dict[str, set[str]]:
  """Slices with so many hosts of so many chips, busy or not: their nodes."""
  slices: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
  for node in ray.nodes():
    if node['Alive'] and (name := node['Labels'].get(_SLICE)):
      slices[name].append(node)
  whole = {
    name: {host['NodeID'] for host in hosts}
    for name, hosts in sorted(slices.items())
    if len(hosts) == wanted.hosts
    and all(_has(host['Resources'], wanted) for host in hosts)
    and all(h['Resources']['TPU'] == wanted.resources['TPU'] for h in hosts)
  }
  if whole:
    return whole
  has = lambda machine: _words(  # noqa: E731
    Wanted({name: machine.get(name, 0) for name in wanted.resources})
  )
  there = ', '.join(
    f'{name}: {len(hosts)} of {has(hosts[0]["Resources"])}'
    for name, hosts in sorted(slices.items())
  )
  raise HostError(
    f'no TPU slice of the Ray cluster has {wanted.hosts} hosts of '
    f'{_words(wanted)}, as --hosts_per_cell and --resources ask for a cell; '
    f'there are {there or "none"}'
  )


class Room:
  """Places cells on the machines of a cluster, one after another.

  Raises:
    HostError: too few machines, or no slice, have what a cell takes.
  """

  def __init__(self, ray: ModuleType, wanted: Wanted):
    check_fits(ray, wanted)
    self._ray, self._wanted = ray, wanted
    self._lost: float | None = None  # since when no cell fits
    self._next_look = 0.0
    # Until when a slice is not asked for; one that is held, for ever.
    self._left_alone: dict[str, float] = {}

  def fits(self) -> bool:
    """Whether the machines that are left can run a cell.

    Raises:
      HostError: they could not for half an hour.
    """
    try:
      check_fits(self._ray, self._wanted)
    except HostError as error:
      now = time.monotonic()
      if self._lost is None:
        self._lost = now
        print(f'waiting for lost machines: {error}', flush=True)
      if now >= self._lost + _RETURN:
        raise HostError(
          f'lost machines did not come back in {_RETURN:g} s: {error}; '
          'the same command continues'
        ) from error
      return False
    self._lost = None
    return True

  def place(self) -> Placed | None:
    """Asks for machines; None while no slice is free.

    Raises:
      HostError: as in fits, or Ray refuses to reserve what a cell takes.
    """
    wanted, util = self._wanted, self._ray.util
    if time.monotonic() < self._next_look:
      return None
    name = self._free_slice() if self.fits() else None
    if name is None:
      self._next_look = time.monotonic() + 1
      return None
    if wanted.hosts == 1:
      return Placed([wanted.options()], lambda: None)
    try:
      group = util.placement_group(
        [dict(wanted.resources)] * wanted.hosts,
        strategy='STRICT_SPREAD',
        bundle_label_selector=[{_SLICE: name}] * wanted.hosts if name else None,
      )
    except ValueError as error:
      raise HostError(
        f'Ray cannot reserve {_words(wanted)} on {wanted.hosts} machines: '
        f'{str(error).strip().splitlines()[0]}'
      ) from error
    strategy = util.scheduling_strategies.PlacementGroupSchedulingStrategy
    options = [
      {**wanted.options(), 'scheduling_strategy': strategy(group, number)}
      for number in range(wanted.hosts)
    ]
    if name:
      return self._hold(name, group, options)
    release = functools.partial(util.remove_placement_group, group)
    return Placed(options, release)

  def _free_slice(self) -> str | None:
    """Its name, '' where a cell needs none, or None while all are taken."""
    if not self._wanted.is_slice:
      return ''
    taken = {
      node
      for group in self._ray.util.placement_group_table().values()
      if group['state'] != 'REMOVED'
      for node in group['bundles_to_node_id'].values()
    }
    for name, nodes in _whole_slices(self._ray, self._wanted).items():
      alone = time.monotonic() < self._left_alone.get(name, 0.0)
      if not alone and not nodes & taken:
        return name
    return None

  def _hold(self, name: str, group: Any, options: list[Any]) -> Placed:
    util, give_up = self._ray.util, time.monotonic() + _PATIENCE
    self._left_alone[name] = float('inf')

    def ready() -> bool:
      return util.placement_group_table(group).get('state') == 'CREATED'

    def late() -> str:
      if time.monotonic() < give_up or ready():
        return ''
      return f'TPU slice {name} was not ready in {_PATIENCE:g} s'

    def release() -> None:
      pause = 0.0 if ready() else _PAUSE
      self._left_alone[name] = time.monotonic() + pause
      util.remove_placement_group(group)

    return Placed(options, release, late)
