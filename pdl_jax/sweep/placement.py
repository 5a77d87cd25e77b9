"""Reserves machines of a Ray cluster for a cell: one, or several at once.

They are a placement group, all of it or nothing: of different machines, or for
TPU the hosts of one slice, which is named. Ray would choose a slice by its
first host alone, whose others may be lost or busy.
"""

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from pdl_jax.errors import HostError, reason

# Seconds for a slice that looks free, before another one is asked for.
_PATIENCE = 30.0
# Seconds for lost machines to come back, where those left can run no cell.
_RETURN = 1800.0
_SLICE, _WORKER = 'ray.io/tpu-slice-name', 'ray.io/tpu-worker-id'

Machine = Mapping[str, float]  # resource -> how much there is


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a cell takes."""

  resources: Mapping[str, float]  # of each machine, by Ray's names
  hosts: int = 1

  @property
  def is_slice(self) -> bool:
    """Whether the machines must be those of one TPU slice."""
    return self.hosts > 1 and 'TPU' in self.resources

  def fits(self, machines: Sequence[Machine]) -> bool:
    """Whether a cell can run on some of them, or is the slice that they are."""
    enough = [
      all(machine.get(name, 0) >= n for name, n in self.resources.items())
      for machine in machines
    ]
    if not self.is_slice:
      return enough.count(True) >= self.hosts
    chips = {machine.get('TPU') for machine in machines}
    size = {self.resources['TPU']}
    return all(enough) and len(machines) == self.hosts and chips == size


def check_fits(ray: ModuleType, wanted: Wanted) -> dict[str, set[str]]:
  """Finds where a cluster can run a cell, busy or not.

  Returns:
    slice -> its nodes; '' -> all nodes if a cell needs no slice.

  Raises:
    HostError: too few machines, or no slice, have what a cell takes.
  """
  groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
  for node in ray.nodes():
    name = node['Labels'].get(_SLICE) if wanted.is_slice else ''
    if node['Alive'] and name is not None:
      groups[name].append(node)
  fit, there = {}, []
  for name, nodes in sorted(groups.items()):
    machines = [node['Resources'] for node in nodes]
    if wanted.fits(machines):
      fit[name] = {node['NodeID'] for node in nodes}
    there.append(f'{name}: ' * bool(name) + _count(machines, wanted))
  if fit:
    return fit
  kind = 'has no TPU slice of' if wanted.is_slice else 'does not have'
  raise HostError(
    f'the Ray cluster {kind} {wanted.hosts} x {_words(wanted.resources)}, '
    'which a cell takes by --hosts_per_cell and --resources; there are '
    f'{"; ".join(there) or "none"}'
  )


def _count(machines: Sequence[Machine], wanted: Wanted) -> str:
  """Machines by what they have of each resource, as in '2 x CPU=1 TPU=4'."""
  counts = Counter(
    _words({name: machine.get(name, 0) for name in wanted.resources})
    for machine in machines
  )
  return ', '.join(f'{count} x {words}' for words, count in counts.items())


def _words(resources: Mapping[str, float]) -> str:
  return ' '.join(f'{name}={n:g}' for name, n in resources.items())


@dataclasses.dataclass(frozen=True)
class Reserved:
  """Machines that Ray gives to a cell, or will give."""

  ray: ModuleType
  group: Any  # Ray's name for them
  wanted: Wanted
  of_slice: str  # its name, '' if they are of none
  asked: float  # by time.monotonic

  def options(self) -> list[dict[str, Any]]:
    """Returns Ray's options of a task on each of the machines."""
    strategy = (
      self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    )
    resources = dict(self.wanted.resources)
    cpus, gpus = resources.pop('CPU'), resources.pop('GPU', 0)
    return [
      {
        'num_cpus': cpus,
        'num_gpus': gpus,
        'resources': resources,
        'scheduling_strategy': strategy(self.group, number),
        # After a death the claim says when the cell is free.
        'max_retries': 0,
      }
      for number in range(self.wanted.hosts)
    ]

  def ready(self) -> bool:
    """Waits a moment; whether all of them are there."""
    return self.group.wait(0.5)

  def late(self) -> bool:
    """Whether another slice should be asked for instead."""
    waited = time.monotonic() - self.asked
    return bool(self.of_slice) and waited >= _PATIENCE

  def release(self) -> None:
    """Gives them back; ends what runs there."""
    self.ray.util.remove_placement_group(self.group)


class Room:
  """Reserves machines for cells, one cell after another.

  Raises:
    HostError: too few machines, or no slice, have what a cell takes.
  """

  def __init__(self, ray: ModuleType, wanted: Wanted):
    check_fits(ray, wanted)
    self._ray, self._wanted = ray, wanted
    self._lost: float | None = None  # since when no cell fits
    self._asked: Reserved | None = None  # for the next cell
    self._asked_for: dict[str, float] = {}  # slice -> when, the last time
    self._next_look = 0.0

  def place(self) -> Reserved | None:
    """Reserves machines; None until they are there.

    Raises:
      HostError: Ray refuses to reserve what a cell takes, or machines were lost
        and those that are left could run no cell for half an hour.
    """
    if time.monotonic() < self._next_look:
      return None
    slices = self._fitting()
    if self._asked is None:
      self._asked = self._ask(slices)
    asked = self._asked
    if asked is not None and asked.ready():
      self._asked = None
      return asked
    self._next_look = time.monotonic() + 1
    if asked is not None and asked.late():
      print(
        f'TPU slice {asked.of_slice} was not ready in {_PATIENCE:g} s',
        flush=True,
      )
      self._give_back(asked)
    return None

  def rest(self) -> None:
    """Gives back machines for which no cell has come for a while."""
    idle = time.monotonic() >= self._next_look + _PATIENCE
    if self._asked is not None and idle:
      self._give_back(self._asked)

  def _give_back(self, asked: Reserved) -> None:
    asked.release()
    self._asked = None

  def _fitting(self) -> dict[str, set[str]]:
    """Like check_fits, but nothing while lost machines may come back."""
    try:
      found = check_fits(self._ray, self._wanted)
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
      return {}
    self._lost = None
    return found

  def _ask(self, slices: Mapping[str, set[str]]) -> Reserved | None:
    """Asks for machines, if any are free; of slices for each in its turn."""
    wanted, util = self._wanted, self._ray.util
    taken: set[str] = set()
    if wanted.is_slice:
      taken = {
        node
        for group in util.placement_group_table().values()
        if group['state'] != 'REMOVED'
        for node in group['bundles_to_node_id'].values()
      }
    free = [name for name, nodes in slices.items() if not nodes & taken]
    if not free:
      return None
    name = min(free, key=lambda name: self._asked_for.get(name, 0.0))
    self._asked_for[name] = time.monotonic()
    # Process i of a TPU run is on host i of the slice.
    hosts = [
      {_SLICE: name, _WORKER: str(number)} for number in range(wanted.hosts)
    ]
    try:
      group = util.placement_group(
        [dict(wanted.resources)] * wanted.hosts,
        strategy='STRICT_SPREAD',
        bundle_label_selector=hosts if name else None,
      )
    except ValueError as error:
      raise HostError(
        f'Ray cannot reserve {wanted.hosts} x {_words(wanted.resources)}: '
        f'{reason(error)}'
      ) from error
    return Reserved(self._ray, group, wanted, name, time.monotonic())
