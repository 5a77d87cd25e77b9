"""Checkpoints: exact, with the data's position, and aware of damage."""

import contextlib
import errno
import functools
import json
import re
import resource
import shutil
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from pdl_jax.errors import CheckpointError, HostError
from pdl_jax.train.checkpoint import Checkpointer
from pdl_jax.train.checksum import json_crc
from pdl_jax.train.integrity import check_position, reading

# Orbax leaves coroutines un-awaited when a read or a write fails.
pytestmark = [
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
  pytest.mark.filterwarnings('ignore:coroutine .* was never awaited'),
]


def make_state(seed=0, rows=16):
  params = {
    'embed': jax.random.normal(jax.random.key(seed), (rows, 24)),
    'scale': jnp.full((8,), 1.5 + seed, jnp.bfloat16),
  }
  return {
    'params': params,
    'opt': optax.adamw(1e-3).init(params),
    'step': jnp.int32(seed),
    'key': jax.random.key(seed),
  }


def make_mesh(*shape):
  return jax.make_mesh(
    shape, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )


def on_mesh(mesh, spec):
  """A sharding for each leaf: `spec` for matrices, whole for the rest."""
  return lambda x: NamedSharding(mesh, spec if x.ndim == 2 else P())


def one_device(_):
  return SingleDeviceSharding(jax.devices()[0])


def abstract(state, sharding=one_device):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)),
    state,
  )


def bits(state):
  def one(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    return np.array(x, copy=True)

  return jax.tree.map(one, state)


def assert_same(a, b):
  for x, y in zip(
    jax.tree.leaves(bits(a)), jax.tree.leaves(bits(b)), strict=True
  ):
    assert x.dtype == y.dtype
    assert x.tobytes() == y.tobytes()


def make_data(threads=0):
  pipeline = grain.MapDataset.source(range(20)).seed(7).shuffle().repeat()
  return iter(pipeline.to_iter_dataset(grain.ReadOptions(num_threads=threads)))


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """A folder of steps 1 and 2, to be copied before it is harmed."""
  workdir = tmp_path_factory.mktemp('run')
  data = make_data()
  with Checkpointer(workdir) as checkpointer:
    for step in (1, 2):
      take(data, step)
      checkpointer.save(
        step, make_state(step), data, {'loss': step}, {'n': step}
      )
  return workdir


@pytest.fixture
def harmed(two_steps, tmp_path):
  """A copy, and a function that names the one file matching a pattern."""
  workdir = tmp_path / 'copy'
  shutil.copytree(two_steps, workdir)

  def largest(pattern, step=2):
    files = (workdir / 'checkpoints' / str(step)).glob(pattern)
    return max(files, key=lambda path: path.stat().st_size)

  return workdir, largest


def flip(path, at=None):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2 if at is None else at] ^= 4
  path.write_bytes(raw)


def restore(workdir, data=None, target=None):
  with Checkpointer(workdir) as checkpointer:
    found = checkpointer.restore_latest(
      abstract(make_state()) if target is None else target, data
    )
    return found, checkpointer.damaged


def test_round_trip(two_steps, tmp_path):
  assert restore(tmp_path) == (None, [])
  data = make_data()
  (step, state, meta), damaged = restore(two_steps, data)
  assert (step, meta, damaged) == (2, {'n': 2}, [])
  assert_same(state, make_state(2))
  assert take(data, 5) == take(make_data(), 8)[3:]


def test_interrupted_stream_goes_on_as_if_never_interrupted(tmp_path):
  whole = take(make_data(), 50)
  data = make_data(threads=2)
  seen = take(data, 23)
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(23, {'w': jnp.ones(2)}, data)
    take(data, 9)  # reads on while the save runs, and is killed
  data = make_data(threads=2)
  restore(tmp_path, data, abstract({'w': jnp.ones(2)}))
  assert seen + take(data, 27) == whole


@pytest.mark.parametrize(
  'sharding',
  [
    one_device,
    on_mesh(make_mesh(8, 1, 1), P()),
    on_mesh(make_mesh(8, 1, 1), P('data')),
  ],
  ids=['one_device', 'replicated', 'sharded'],
)
def test_donated_state_is_saved_as_it_was(tmp_path, sharding):
  @functools.partial(jax.jit, donate_argnums=0)
  def update(state):
    return jax.tree.map(lambda x: x * 1.5 + 7, state)

  def fresh():
    state = {f'w{i}': jnp.full((512, 1024), float(i)) for i in range(4)}
    return jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s))(
      jax.device_put(state, jax.tree.map(sharding, state))
    )

  update(fresh())  # compiled before, so that it starts the moment save returns
  state = fresh()
  expected = bits(state)
  target = abstract(state, sharding)
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, None)
    for _ in range(3):
      state = update(state)
    jax.block_until_ready(state)
  (_, restored, _), damaged = restore(tmp_path, target=target)
  assert damaged == []
  assert_same(restored, expected)


def test_another_mesh(tmp_path):
  """Each step is saved on one mesh and restored on the next."""
  layouts = [
    one_device,
    on_mesh(make_mesh(8, 1, 1), P('data')),
    on_mesh(make_mesh(2, 2, 2), P(('data', 'fsdp'), 'tensor')),
    on_mesh(make_mesh(1, 1, 8), P(None, 'tensor')),
  ]
  state = make_state()
  for step, after in enumerate(layouts[1:]):
    with Checkpointer(tmp_path) as checkpointer:
      checkpointer.save(step, state, None)
    target = abstract(state, after)
    (_, state, _), damaged = restore(tmp_path, target=target)
    assert damaged == []
    assert_same(state, make_state())
    same = jax.tree.map(lambda x, t: x.sharding == t.sharding, state, target)
    assert jax.tree.all(same)


def with_embed(state, embed):
  return {**state, 'params': {**state['params'], 'embed': embed}}


@pytest.fixture
def parted(tmp_path):
  """Steps 1 and 2 without one leaf; a target on another mesh has it."""
  first = make_state(1)
  with Checkpointer(tmp_path, elsewhere=['params/embed']) as checkpointer:
    checkpointer.save(1, first, None)
    second = with_embed(make_state(2), first['params']['embed'])
    checkpointer.save(2, {**second, 'step': jnp.int32(2)}, None)
  layout = on_mesh(make_mesh(2, 2, 2), P(('data', 'fsdp'), 'tensor'))
  embed = jax.device_put(
    first['params']['embed'], layout(first['params']['embed'])
  )
  return tmp_path, second, with_embed(abstract(first, layout), embed)


def test_what_is_kept_elsewhere_is_taken_from_the_target(parted):
  workdir, state, target = parted
  kept = (workdir / 'checkpoints/2/state/_METADATA').read_text('utf-8')
  assert 'scale' in kept and '"params\', \'embed' not in kept
  files = (workdir / 'checkpoints/2/state').rglob('d/*')
  saved = sum(file.stat().st_size for file in files)
  moments = 2 * state['params']['embed'].nbytes  # zeros, which vanish
  assert saved < moments
  (step, found, _), damaged = restore(workdir, target=target)
  assert (step, damaged) == (2, [])
  assert_same(found, state)
  assert found['params']['embed'] is target['params']['embed']


def test_what_has_changed_elsewhere_is_not_damage(parted):
  workdir, _, target = parted
  embed = target['params']['embed']
  other = jax.lax.bitcast_convert_type(embed, jnp.uint32).at[3, 5].add(1)
  other = jax.lax.bitcast_convert_type(other, jnp.float32)
  with pytest.raises(CheckpointError) as error:
    restore(workdir, target=with_embed(target, other))
  words = r'1 of 1 .* since: params/embed: 0x\w+ saved, 0x\w+ now; put back'
  assert re.search(words, str(error.value))
  names = {path.name for path in (workdir / 'checkpoints').iterdir()}
  assert names == {'1', '2'}


def test_damage_of_what_is_saved_is_told_from_that(parted):
  workdir, _, target = parted
  for file in (workdir / 'checkpoints/2/state').rglob('d/*'):
    flip(file)
  (step, _, _), (line,) = restore(workdir, target=target)
  assert step == 1 and 'checkpoints/2 is damaged' in line


def test_a_step_of_an_earlier_version_has_all_leaves(two_steps, tmp_path):
  """It is read as it is; the target's numbers do not matter."""
  workdir = tmp_path / 'copy'
  shutil.copytree(two_steps, workdir)
  path = workdir / 'checkpoints/2/meta/metadata'
  record = json.loads(path.read_text('utf-8'))
  del record['crc32'], record['elsewhere']
  record['crc32'] = json_crc(record)
  path.write_text(json.dumps(record), 'utf-8')
  with Checkpointer(workdir, elsewhere=['params/embed']) as checkpointer:
    found = checkpointer.restore_latest(make_state(5), None)
  assert found is not None and found[0] == 2
  assert_same(found[1], make_state(2))


def test_keeps_the_last_and_the_best(tmp_path):
  losses = [float('nan'), 1.0, np.float32(2.0), None, 3.0, 4.0]
  state = {'w': jnp.ones(2)}
  with Checkpointer(tmp_path, keep=2) as checkpointer:
    for step, loss in enumerate(losses[:4], start=1):
      metrics = None if loss is None else {'loss': loss}
      checkpointer.save(step, state, None, metrics)
  with Checkpointer(tmp_path, keep=2) as checkpointer:  # remembers the losses
    assert checkpointer.best_step() == 2
    for step, loss in enumerate(losses[4:], start=5):
      checkpointer.save(step, state, None, {'loss': loss})
    checkpointer.wait()
    kept = sorted(int(p.name) for p in checkpointer.directory.iterdir())
    assert kept == [2, 5, 6]
    assert checkpointer.best_step() == 2
    assert checkpointer.latest_step() == 6
    best, _ = checkpointer.restore_step(2, abstract(state))
    assert_same(best, state)


def test_meta_takes_numpy(tmp_path):
  meta = {
    'loss': np.float32(0.5), 'count': np.int64(3), 'list': np.arange(3),
    'jax': jnp.int32(4), 'text': 'é', 'none': None,
  }  # fmt: skip
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, {'w': jnp.ones(2)}, None, meta=meta)
    with pytest.raises(TypeError, match='JSON'):
      checkpointer.save(2, {'w': jnp.ones(2)}, None, meta={'a': object()})
    _, _, found = checkpointer.restore_latest(
      abstract({'w': jnp.ones(2)}), None
    )
  plain = {'loss': 0.5, 'count': 3, 'list': [0, 1, 2], 'jax': 4}
  assert found == meta | plain


def test_saving_a_step_again(harmed):
  workdir, _ = harmed
  with Checkpointer(workdir) as checkpointer:
    assert checkpointer.save(2, make_state(9), None) is False
    with pytest.raises(CheckpointError, match=r'step 1.*holds step 2'):
      checkpointer.save(1, make_state(9), None)
    assert checkpointer.save(3, make_state(3), None) is True
    assert checkpointer.save(3, make_state(9), None) is False  # in flight
  (step, state, _), _ = restore(workdir)
  assert step == 3
  assert_same(state, make_state(3))


def delete(path):
  path.unlink()


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(old, new):
  """JSON that still parses."""

  def change(path):
    text = path.read_text('utf-8')
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), 'utf-8')

  return change


@pytest.mark.parametrize(
  ('pattern', 'harm', 'reason'),
  [
    ('state/ocdbt*/d/*', flip, r'embed: 0x\w+ saved, 0x\w+ now'),
    ('state/ocdbt*/d/*', halve, r'embed.*range'),
    ('state/ocdbt*/d/*', delete, 'embed'),
    ('state/d/*', delete, 'NOT_FOUND'),
    ('state/manifest.ocdbt', flip, 'CRC-32C'),
    ('state/_METADATA', halve, 'state is unreadable'),
    ('state/array_metadatas/*', delete, 'key: key<fry>'),
    ('meta/metadata', delete, 'meta is unreadable'),
    ('meta/metadata', halve, 'meta is unreadable'),
    ('meta/metadata', replace('"n": 2', '"n": 3'), 'checksum differs'),
    ('meta/metadata', replace('"loss": 2', '"loss": 0'), 'checksum differs'),
    ('data/process*', delete, 'process_0-of-1.json'),
    ('data/process*', replace('3', '7'), 'checksum differs'),
  ],
)
def test_damaged_step_is_named_and_set_aside(
  harmed, caplog, pattern, harm, reason
):
  workdir, largest = harmed
  harm(largest(pattern))
  data = make_data()
  (step, state, meta), (line,) = restore(workdir, data)
  assert (step, meta) == (1, {'n': 1})
  assert_same(state, make_state(1))
  assert take(data, 3) == take(make_data(), 4)[1:]  # the data of step 1, too
  assert str(workdir / 'checkpoints' / '2') in line
  assert re.search(reason, line)
  assert line in caplog.text
  names = {path.name for path in (workdir / 'checkpoints').iterdir()}
  assert names == {'1', '2.damaged'}


def test_every_step_damaged(harmed):
  workdir, largest = harmed
  for step in (1, 2):
    flip(largest('state/ocdbt*/d/*', step))
  for _ in range(2):  # the next start must not begin anew in silence, either
    with pytest.raises(CheckpointError, match=r'1\.damaged, 2\.damaged'):
      restore(workdir)


def test_damaged_twice_at_the_same_step(harmed):
  workdir, largest = harmed
  for _ in range(2):
    flip(largest('state/ocdbt*/d/*'))
    (step, state, _), damaged = restore(workdir)
    assert (step, len(damaged)) == (1, 1)
    with Checkpointer(workdir) as checkpointer:
      checkpointer.save(2, state, None)
  assert restore(workdir)[1] == []


def test_restore_step_reports_and_renames_nothing(harmed):
  workdir, largest = harmed
  flip(largest('state/ocdbt*/d/*'))
  with Checkpointer(workdir) as checkpointer:
    with pytest.raises(CheckpointError, match=r'2 is damaged.*embed'):
      checkpointer.restore_step(2, abstract(make_state()))
    with pytest.raises(CheckpointError, match='no step 5'):
      checkpointer.restore_step(5, abstract(make_state()))
    assert checkpointer.latest_step() == 2


def half(state):
  embed = state['params']['embed'].astype(jnp.bfloat16)
  return {**state, 'params': {**state['params'], 'embed': embed}}


def test_what_does_not_fit_is_not_damage(two_steps):
  """Another model, mesh or data pipeline."""
  state, place = make_state(), two_steps / 'checkpoints' / '2'
  for other, message in (
    (half(state), r'embed: float32\[16, 24\] saved, bfloat16\[16, 24\] now'),
    ({**state, 'ema': state['params']}, 'ema/embed: nothing saved'),
    ({**state, 'opt': ()}, '5 of 9 .*opt/0/count: int32.* nothing now'),
    (make_state(rows=8), r'\[16, 24\] saved, float32\[8, 24\] now'),
  ):
    with pytest.raises(CheckpointError, match=message):
      restore(two_steps, target=abstract(other))
  uneven = on_mesh(make_mesh(1, 1, 5), P(None, 'tensor'))  # 24 columns
  with pytest.raises(ValueError, match='divi'):
    restore(two_steps, target=abstract(state, uneven))
  bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  with pytest.raises(ValueError, match='no sharding'):
    restore(two_steps, target=bare)
  with pytest.raises(CheckpointError, match='of 2 processes, not 1'):
    check_position({'data_crc32': [1, 2]}, place)
  rows = grain.MapDataset.source([{'x': np.arange(3)}]).repeat()
  packed = grain.experimental.FirstFitPackIterDataset(
    rows.to_iter_dataset(), length_struct={'x': 8}, num_packing_bins=1
  )
  with pytest.raises(CheckpointError, match='another data pipeline'):
    restore(two_steps, iter(packed))
  assert place.exists()


@pytest.mark.parametrize(
  ('error', 'expected'),
  [
    (RuntimeError('out of memory'), RuntimeError),
    (PermissionError(errno.EACCES, 'no'), HostError),
    (ValueError("UNKNOWN: [os_error_code='5']"), HostError),
  ],
)
def test_bugs_and_host_trouble_are_not_damage(two_steps, error, expected):
  with pytest.raises(expected), reading(two_steps):
    raise error
  cause = error
  if expected is HostError:
    with pytest.raises(HostError), reading(two_steps):
      raise Exception('wrapped') from cause  # as Orbax does


def test_killed_save_is_ignored_and_cleared(harmed):
  workdir, _ = harmed
  root = workdir / 'checkpoints'
  shutil.copytree(root / '2', root / '3.orbax-checkpoint-tmp')
  shutil.rmtree(root / '3.orbax-checkpoint-tmp' / 'meta')
  shutil.copytree(root / '2', root / '7.orbax-checkpoint-tmp')
  with Checkpointer(workdir) as checkpointer:
    step, _, _ = checkpointer.restore_latest(abstract(make_state()), None)
    assert step == 2
    assert checkpointer.save(3, make_state(3), None)
  assert {path.name for path in root.iterdir()} == {'1', '2', '3'}
  (step, state, _), _ = restore(workdir)
  assert step == 3
  assert_same(state, make_state(3))


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('', 'utf-8')
  with pytest.raises(
    HostError, match=r'open .*file/run/checkpoints: Not a dir'
  ):
    Checkpointer(tmp_path / 'file' / 'run')


@contextlib.contextmanager
def no_file_larger_than(size):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('waiting', ['wait', 'close', 'save'])
def test_full_disk_is_told_in_a_line_alone(tmp_path, waiting, capfd, caplog):
  """Without what threads of Orbax say of it, and without half a save."""
  small, large = make_state(), make_state(rows=8000)
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, small, None)
  checkpointer.wait()
  with no_file_larger_than(100_000):
    checkpointer.save(2, large, None)
    with pytest.raises(
      HostError, match=r'write .*/checkpoints: File too large'
    ):
      if waiting == 'save':
        checkpointer.save(3, small, None)
      else:
        getattr(checkpointer, waiting)()
  if waiting != 'close':
    checkpointer.close()
  assert 'Traceback' not in capfd.readouterr().err + caplog.text
  assert [path.name for path in checkpointer.directory.iterdir()] == ['1']
  (step, _, _), damaged = restore(tmp_path)
  assert (step, damaged) == (1, [])


class Counted(NamedTuple):
  """A state that knows its step, as that of the job does."""

  step: jax.Array
  w: jax.Array


def counted(step):
  return Counted(jnp.int32(step), jnp.full(2, step))


@pytest.fixture
def three_saves(tmp_path):
  with Checkpointer(tmp_path) as checkpointer:
    for step in (2, 4, 6):
      checkpointer.save(step, counted(step), None, {'loss': step})
  return tmp_path


@pytest.mark.parametrize('harm', [shutil.move, shutil.copytree])
def test_a_step_under_another_number_is_not_restored(three_saves, harm):
  root = three_saves / 'checkpoints'
  harm(root / '4', root / '9')
  with Checkpointer(three_saves) as checkpointer:
    found = checkpointer.restore_latest(abstract(counted(0)), None)
    (line,) = checkpointer.damaged
  assert found is not None and found[0] == 6
  assert line.endswith('its state is of step 4: renamed or copied')
  assert (root / '9.damaged').exists()


def test_a_save_that_vanished_is_said(three_saves):
  def missing():
    with Checkpointer(three_saves) as checkpointer:
      checkpointer.restore_latest(abstract(counted(0)), None)
      return checkpointer.missing

  root = three_saves / 'checkpoints'
  shutil.rmtree(root / '2')  # an older one is no news
  assert missing() == ''
  shutil.rmtree(root / '6')
  assert missing() == f'missing: step 6, saved in {root}'
  with Checkpointer(three_saves) as checkpointer:
    checkpointer.save(5, counted(5), None)
  assert missing() == ''  # the run has gone on without
  shutil.rmtree(root)
  assert missing() == f'missing: step 5, saved in {root}'


@pytest.mark.parametrize('text', ['', '{"4": ', '[]', '{"a": {}}', '{"9": 3}'])
def test_a_torn_list_of_saves_is_said(three_saves, text):
  (three_saves / 'saves.json').write_text(text, 'utf-8')
  with Checkpointer(three_saves) as checkpointer:
    assert checkpointer.best_step() == 2
    found = checkpointer.restore_latest(abstract(counted(0)), None)
  assert found is not None and found[0] == 6
  assert checkpointer.missing == (
    f'{three_saves / "saves.json"} is torn or altered: whether a later step '
    'was saved is not known'
  )


def test_what_is_measured_after_the_save_ranks_it(tmp_path):
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, counted(1), None, {'loss': 2.0})
    checkpointer.save(2, counted(2), None)
  for _ in range(2):
    with Checkpointer(tmp_path) as checkpointer:
      assert checkpointer.best_step() == 1
      assert [checkpointer.measured(step) for step in (1, 2)] == [True, False]
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.measure(2, {'loss': 1.0})
  with Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.best_step() == 2 and checkpointer.measured(2)


def test_read_only_disk_is_told(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(errno.EROFS, 'Read-only file system')

  with Checkpointer(tmp_path) as checkpointer:
    monkeypatch.setattr(checkpointer._manager, 'save', refuse)
    with pytest.raises(HostError, match='checkpoints: Read-only file system'):
      checkpointer.save(1, make_state(), None)
