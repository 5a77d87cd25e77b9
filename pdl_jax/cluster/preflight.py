"""Checks all hosts at once before anything of size is compiled.

The result is one table of PASS or FAIL. A FAIL ends every host with the same
line. What all can see for themselves, all find at the same time.
"""

import json
import secrets
import shutil
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdl_jax.cluster import memory
from pdl_jax.config import Settings, read
from pdl_jax.errors import ConfigError, HostError
from pdl_jax.mesh import batch_share, put
from pdl_jax.run import finetune, loss_tables
from pdl_jax.run.prepare import Setup
from pdl_jax.train.checkpoint import Checkpointer
from pdl_jax.train.checksum import leaves_by_path
from pdl_jax.train.optimizer import make_optimizer
from pdl_jax.train.state import describe

_ROOT = Path(__file__).parent.parent.parent
_MOST, _LONGEST = 3, 120  # differences shown, characters of each


class Check(NamedTuple):
  """One row of the table; `failure` is '' if the check passed."""

  name: str
  failure: str
  found: str


def gather(value: Any) -> list[Any]:
  """Collects a JSON value of each process, in the order of their numbers."""
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  count = jax.process_count()
  sizes = multihost_utils.process_allgather(np.asarray(data.size))
  sizes = np.reshape(sizes, count)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: data.size] = data
  rows = np.reshape(multihost_utils.process_allgather(padded), (count, -1))
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def differences(
  facts: Sequence[Mapping[str, Any]], hosts: Sequence[str]
) -> str:
  """Says where processes differ from process 0; '' if nowhere."""
  found = [
    f'{key} is {_short(own.get(key))} in process {number} (on {hosts[number]})'
    f' and {_short(facts[0].get(key))} in process 0 (on {hosts[0]})'
    for number, own in enumerate(facts)
    for key in sorted({*own, *facts[0]})
    if own.get(key) != facts[0].get(key)
  ]
  more = len(found) - _MOST
  return '; '.join(found[:_MOST]) + (f'; and {more} more' if more > 0 else '')


def _short(value: Any) -> str:
  return 'absent' if value is None else str(value)[:_LONGEST]


def code() -> dict[str, str]:
  """Maps the path of each file of the program to its checksum."""
  files = [_ROOT / 'launch.py', *_ROOT.glob('pdl_jax/**/*.py')]
  files += _ROOT.glob('configs/*.py')
  return {
    str(path.relative_to(_ROOT)): f'{zlib.crc32(path.read_bytes()):08x}'
    for path in files
  }


def packages() -> dict[str, str]:
  """Maps each installed package, and Python, to its version."""
  found = {d.metadata['Name']: d.version for d in metadata.distributions()}
  return {'python': sys.version.split()[0], **found}


class Preflight:
  """Collects the rows; a run calls `start`, then `data`."""

  def __init__(self, settings: Settings, workdir: Path):
    self._settings, self._workdir = settings, workdir
    self._hosts = gather(socket.gethostname())
    self._rows: list[Check] = []

  def start(self) -> None:
    """Checks everything that does not need the data."""
    self._backend()
    self._devices()
    self._same('configuration', read(self._settings.resolved))
    self._same('code', code())
    self._same('packages', packages())
    mesh = self._mesh()
    if mesh is not None:
      self._all_reduce(mesh)
    self._shared_folder()
    self._end_if_failed()
    assert mesh is not None
    self._save_and_restore(mesh)
    self._end_if_failed()

  def data(self, ready: Setup) -> None:
    """Checks what was read, and prints the table."""
    splits = (ready.train, ready.validation, ready.held_out)
    self._same('data', {
      split.source.split: split.source.fingerprint for split in splits
    })
    self._same('tokenizer', {'tokenizer': ready.model.tokenizer.fingerprint})
    self._same('frequency table', {
      'counts': ready.frequencies.used.fingerprint
    })
    self._weights(ready)
    self._memory(ready)
    self._free_space(ready)
    self._end_if_failed(last=True)

  def _add(self, name: str, failed: bool, failure: str, found: str) -> None:
    self._rows.append(Check(name, failure if failed else '', found))

  def _backend(self) -> None:
    asked, found = jax.config.values['jax_platforms'], jax.default_backend()
    kinds = sorted({device.device_kind for device in jax.devices()})
    self._add(
      'backend', not asked and found == 'cpu',
      'no accelerator was found, and JAX would train on the CPU; mend the '
      'driver or libtpu, end what holds the chips, or ask for it: '
      '--backend=cpu',
      f'{found} ({", ".join(kinds)})',
    )  # fmt: skip

  def _devices(self) -> None:
    owners = [device.process_index for device in jax.devices()]
    own = [owners.count(number) for number in range(jax.process_count())]
    hosts = list(dict.fromkeys(self._hosts))
    self._add(
      'processes, devices', len(set(own)) > 1,
      f'the processes have {own} devices; they must have as many each',
      f'{len(own)} of {own[0]} each on {len(hosts)} hosts: {", ".join(hosts)}',
    )  # fmt: skip

  def _same(self, name: str, own: Mapping[str, Any]) -> None:
    found = differences(gather(own), self._hosts)
    digest = zlib.crc32(json.dumps(own, sort_keys=True).encode())
    self._add(
      name, bool(found), f'{found}; ship the same {name} to every host',
      f'{digest:08x} everywhere',
    )  # fmt: skip

  def _mesh(self) -> Mesh | None:
    name, rows = 'mesh, batch', self._settings.train.batch_size
    try:
      mesh = finetune.mesh_for(self._settings)
      batch_share(mesh)
    except ConfigError as error:
      # Not raised: it is a row of the table, and all hosts find it.
      self._add(name, True, str(error), '')
      return None
    many = self._settings.mesh.slices
    over = f' over {many} slices' if many > 1 else ''
    self._add(name, False, '', f'{dict(mesh.shape)}{over}, {rows} rows a step')
    return mesh

  def _all_reduce(self, mesh: Mesh) -> None:
    """Sums 1 .. n, one number from each of n devices."""
    count = mesh.size
    numbers = np.arange(1, count + 1, dtype=np.int32)
    placed = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    total = int(jax.jit(jnp.sum)(put(numbers, placed)))
    right = count * (count + 1) // 2
    self._add(
      'all-reduce', total != right,
      f'the sum of 1 to {count} over {count} devices is {total}, not {right}: '
      'a collective gives wrong results',
      f'{total}, as it should be',
    )  # fmt: skip

  def _shared_folder(self) -> None:
    path = self._workdir / 'hosts' / 'token'
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    if jax.process_index() == 0:
      path.write_text(token, 'utf-8')
    token = gather(token)[0]  # A barrier: now the file is there.
    seen = gather(path.read_text('utf-8') if path.exists() else '')
    folders = gather(str(self._workdir.absolute()))
    who = [f'process {i} (on {host})' for i, host in enumerate(self._hosts)]
    blind = [who[i] for i, text in enumerate(seen) if text != token]
    failure = (
      f'{", ".join(blind)} does not see what {who[0]} writes in '
      f'{self._workdir}: the run folder must be one that all hosts mount, such '
      'as Filestore, NFS, Lustre or a bucket by Cloud Storage FUSE'
    )
    if other := differences([{'it': x} for x in folders], self._hosts):
      failure = f'{other}; give all hosts the same --workdir'
    failed = bool(other or blind)
    self._add('shared run folder', failed, failure, str(self._workdir))

  def _save_and_restore(self, mesh: Mesh) -> None:
    """Saves an array split over all devices, and restores it over one axis."""
    place = self._workdir / 'hosts' / 'trial'
    rows = np.arange(8 * mesh.size, dtype=np.int32).reshape(mesh.size, 8)
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    other = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    self._remove(place)
    with Checkpointer(place) as trial:
      trial.save(1, {'rows': put(rows, split)}, None)
      target = {'rows': put(rows, other)}
      restored, _ = trial.restore_step(1, target)
    same = np.array_equal(
      multihost_utils.process_allgather(restored['rows'], tiled=True), rows
    )
    self._remove(place)
    self._add(
      'save and restore', not same,
      f'an array saved to {place} and restored is not the same: this folder '
      'cannot hold checkpoints',
      'bit for bit',
    )  # fmt: skip

  def _weights(self, ready: Setup) -> None:
    name = 'weights before training'
    whole = {
      path: f'{zlib.crc32(np.asarray(leaf).tobytes()):08x}'
      for path, leaf in leaves_by_path(ready.model.params).items()
      if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    }
    if whole:
      self._same(name, whole)
    else:
      self._add(name, False, '', 'in shards; their fingerprint is above')

  def _memory(self, ready: Setup) -> None:
    """Fails only if the state alone, which is exact, does not fit."""
    row = ready.training_rows()[0]
    mesh = finetune.mesh_for(self._settings)
    needed = memory.estimate(
      ready.model.config, self._settings.optimizer, tuple(mesh.shape.values()),
      self._settings.train.batch_size, row['tokens'].size, row['labels'].size,
      loss_tables.make_loss(self._settings.loss),
    )  # fmt: skip
    has = min(gather(_device_bytes()))
    words = (
      f'{needed.arguments / 1e9:.2f} GB of state, about '
      f'{needed.total / 1e9:.2f} GB at most, of {has / 1e9:.2f} GB'
    )
    self._add(
      'memory of a device', needed.arguments > has,
      f'a device needs {words}: take more of them, mesh.fsdp or mesh.tensor',
      words,
    )  # fmt: skip

  def _free_space(self, ready: Setup) -> None:
    """Needs room for all checkpoints kept, the best, and one being written."""
    train = self._settings.train
    state = describe(
      ready.model.params, ready.model.config, self._settings.optimizer,
      make_optimizer(self._settings.optimizer, train.steps),
      finetune.mesh_for(self._settings),
    )  # fmt: skip
    elsewhere = ready.model.in_files(state)
    one = sum(
      x.size * x.dtype.itemsize
      for path, x in leaves_by_path(state).items()
      if path not in elsewhere
    )
    needed = one * (train.keep_checkpoints + 2)
    free = gather(shutil.disk_usage(self._workdir).free)[0]
    words = f'{needed / 1e9:.2f} GB for checkpoints, {free / 1e9:.2f} GB free'
    self._add(
      'free space', needed > free, f'{words} in {self._workdir}', words
    )

  def _remove(self, place: Path) -> None:
    multihost_utils.sync_global_devices(f'{place} done')
    if jax.process_index() == 0:
      shutil.rmtree(place, ignore_errors=True)
    multihost_utils.sync_global_devices(f'{place} gone')

  def _end_if_failed(self, last: bool = False) -> None:
    """Prints the table if a check failed, and after the last one."""
    failed = [f'{x.name}: {x.failure}' for x in self._rows if x.failure]
    if (failed or last) and jax.process_index() == 0:
      width = max(len(row.name) for row in self._rows)
      lines = [
        f'{"FAIL" if row.failure else "PASS"}  {row.name.ljust(width)}  '
        f'{row.failure or row.found}'
        for row in self._rows
      ]
      print('', *lines, '', sep='\n')
    if failed:
      raise HostError(f'pre-flight: {" | ".join(failed)}')


def _device_bytes() -> int:
  """Returns the bytes of one local device; on CPUs, its share of free RAM."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit']
  lines = Path('/proc/meminfo').read_text('utf-8').splitlines()
  free = next(line for line in lines if line.startswith('MemAvailable:'))
  return int(free.split()[1]) * 1024 // jax.local_device_count()
