"""The run folder: what a run leaves on disk, and proof of what it was.

  config.json     the resolved configuration, and the hash of its numbers
  data.json       how many records of each split are used, and their hash
  env.json        commit, versions, flags of XLA, settings of JAX, devices,
                  mesh, budget of the loss's tiles
  status.json     state, step, last error, heartbeat
  metrics.jsonl   one object per logged step
  predictions/    one JSON line per evaluated example; NAME.parts until whole;
                  NAME.key says what those before fine-tuning follow from
  items.json      sums of each evaluated example, for the report to resample
  results.json    written last: its presence means that the run finished
  traceback.txt   of an unexpected error
  run.N.claim     the process that works in it; see run_claim.py
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from pdl_jax.errors import ConfigError, DataError, HostError
from pdl_jax.run_claim import check_unclaimed
from pdl_jax.storage import files

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
  'tensorflow-datasets', 'tokenizers', 'gguf', 'rouge-score', 'sacrebleu',
  'scikit-learn', 'ml_collections',
)
# Those of accelerators, where they are installed.
_PLUGINS = (
  'libtpu', 'jax-cuda12-plugin', 'jax-cuda12-pjrt', 'jax-cuda13-plugin',
  'jax-cuda13-pjrt', 'nvidia-cudnn-cu12', 'nvidia-cudnn-cu13',
)  # fmt: skip
# Settings of JAX that change numbers; environment variables can set them.
_JAX_SETTINGS = (
  'jax_default_matmul_precision', 'jax_default_prng_impl',
  'jax_threefry_partitionable', 'jax_numpy_dtype_promotion',
)  # fmt: skip

# What is read back from the files of a run; see pdl_jax.storage.files.
CONFIG = {
  'hash': str, 'seed': int, 'model': {'pretrained': str}, 'data': dict,
  'loss': {'name': str, 'alpha': float, 'frequency_table': str},
  'optimizer': {'trainable': str}, 'train': {'steps': int}, 'evaluate': dict,
}  # fmt: skip
STATUS = {'state': str, 'step': int, 'error': str, 'heartbeat': float}
METRICS = {
  'step': int, 'validation_nats?': float, 'positions?': int,
  'input_tokens?': int,
}  # fmt: skip
PREDICTION = {
  'id': str, 'prompt': str, 'source': str, 'references': list[str],
  'text': str, 'token_ids': list[int], 'finish_reason': str,
  'reference_ids': list[int], 'reference_nll': list[float], 'decode': dict,
  'group?': str, 'style?': str,
}  # fmt: skip


@dataclasses.dataclass
class _Bucket:
  tokens: int
  perplexity: float | None = None
  nats_per_token: float | None = None


@dataclasses.dataclass
class _Metric:
  value: float | None = None
  n: int | None = None
  buckets: dict[str, _Bucket] = dataclasses.field(default_factory=dict)


# The metrics of one set of predictions, and the numbers of its examples.
MEASURED = dict[str, int | _Metric]
RESULTS = {
  'columns': dict[str, MEASURED], 'loss': dict, 'split': str, 'steps': int,
  'skipped_steps': int, 'seconds_this_call': float, 'decode': dict,
  'neutral_ids': list[int], 'examples': list,
}  # fmt: skip


class Configuration(Protocol):
  """What a run folder needs of `config.Settings`."""

  @property
  def resolved(self) -> dict[str, Any]:
    """The configuration as plain values."""
    ...

  @property
  def hash(self) -> str:
    """The hash of everything that changes numbers."""
    ...

  def differing(self, kept: Mapping[str, Any]) -> list[str]:
    """Names keys of a kept configuration that would give other numbers."""
    ...


class RunFolder:
  """A folder opened for one configuration; `writes` in one process alone."""

  def __init__(self, path: Path, config: Configuration):
    """Creates or reopens the folder; ConfigError names keys of another run."""
    import jax

    self.path = path
    self.writes = jax.process_index() == 0
    if os.path.lexists(path / 'config.json'):
      kept = self.read('config.json', CONFIG)
      if differing := config.differing(kept):
        raise ConfigError(
          f'{path} belongs to another run ({"; ".join(differing)}); choose '
          'another --workdir or remove the folder'
        )
    elif next(path.glob('*/config.json'), None):
      raise ConfigError(
        f'{path} holds other runs; choose a --workdir of its own, such as '
        f'{path}/NAME'
      )
    if self.writes and not self.finished:
      (path / 'predictions').mkdir(parents=True, exist_ok=True)
      self.write('config.json', {'hash': config.hash, **config.resolved})

  @property
  def finished(self) -> bool:
    """Whether results.json is there."""
    return os.path.lexists(self.path / 'results.json')

  def write(self, name: str, value: Any) -> None:
    """Writes JSON atomically."""
    self.write_text(name, json.dumps(value, indent=2) + '\n')

  def write_text(self, name: str, text: str) -> None:
    """Writes text atomically."""
    if self.writes:
      files.write_whole(self.path / name, text)

  def read(self, name: str, shape: Any = dict) -> Any:
    """Reads JSON that `write` wrote; see `storage.files.read_json`."""
    return files.read_json(self.path / name, shape)

  def write_status(self, state: str, step: int, error: str = '') -> None:
    """Says where the run stands; `heartbeat` is in seconds since 1970."""
    self.write('status.json', {
      'state': state, 'step': step, 'error': error, 'heartbeat': time.time(),
    })  # fmt: skip

  def append_metrics(self, row: Mapping[str, Any]) -> None:
    """Adds one object to metrics.jsonl."""
    self._append('metrics.jsonl', [row])

  def cut_metrics(self, step: int, owed: bool = False) -> None:
    """Drops rows after a restored step, and a row torn by a crash.

    If its validation is `owed`, an earlier row of it is dropped, too.
    """
    path = self.path / 'metrics.jsonl'
    if not path.exists():
      return
    rows = files.read_lines(path, METRICS, torn_end=True)
    self.write_text('metrics.jsonl', _lines(
      row
      for row in rows
      if row['step'] <= step - (owed and 'validation_nats' in row)
    ))  # fmt: skip

  def metrics(self) -> list[dict[str, Any]]:
    """Reads all rows of metrics.jsonl."""
    return files.read_lines(self.path / 'metrics.jsonl', METRICS)

  def write_predictions(self, name: str, records: Iterable[dict]) -> None:
    """Writes predictions/NAME.jsonl atomically, and removes its parts."""
    self._write_whole(name, _lines(records))

  def _write_whole(self, name: str, text: str) -> None:
    self.write_text(f'predictions/{name}.jsonl', text)
    if self.writes:
      self._parts(name).unlink(missing_ok=True)

  def predictions(self, name: str) -> list[dict] | None:
    """Reads stored predictions; None if there are none."""
    path = self.path / 'predictions' / f'{name}.jsonl'
    if not os.path.lexists(path):
      return None
    if not (found := files.read_lines(path, PREDICTION)):
      raise DataError(f'{path} is empty; {files.MEND}')
    return found

  def note_key(self, name: str, key: str) -> None:
    """Says what stored predictions follow from, for the runs beside this."""
    if self.writes:
      whole = (self.path / 'predictions' / f'{name}.jsonl').read_bytes()
      digest = hashlib.sha256(whole).hexdigest()
      self.write(f'predictions/{name}.key', {'key': key, 'sha256': digest})

  def adopt(self, name: str, key: str) -> Path | None:
    """Copies predictions with this key from a run beside this one.

    Returns:
      The other run's folder; None if no run has them intact.
    """
    for path in sorted(self.path.parent.glob(f'*/predictions/{name}.key')):
      with contextlib.suppress(OSError, DataError):
        kept = files.read_json(path, {'key': str, 'sha256': str})
        whole = path.with_name(f'{name}.jsonl').read_bytes()
        found = kept['key'], hashlib.sha256(whole).hexdigest()
        if found == (key, kept['sha256']):
          self._write_whole(name, whole.decode())
          self.note_key(name, key)
          return path.parents[1]
    return None

  def prediction_names(self) -> list[str]:
    """Names all whole sets of predictions, `before` and `after` first."""
    names = {path.stem for path in (self.path / 'predictions').glob('*.jsonl')}
    first = [name for name in ('before', 'after') if name in names]
    return [*first, *sorted(names - set(first))]

  def append_predictions(self, name: str, records: Iterable[dict]) -> None:
    """Stores some records of a set that is not whole yet."""
    self._append(f'predictions/{name}.parts', records)

  def partial_predictions(self, name: str) -> dict[str, dict]:
    """Reads the stored records of a set that is not whole yet, by id."""
    if not self._parts(name).exists():
      return {}
    # A crash may have torn the last line.
    whole = files.read_lines(self._parts(name), PREDICTION, torn_end=True)
    self.write_text(f'predictions/{name}.parts', _lines(whole))
    return {record['id']: record for record in whole}

  def _parts(self, name: str) -> Path:
    return self.path / 'predictions' / f'{name}.parts'

  def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    if self.writes:
      with (self.path / name).open('a', encoding='utf-8') as file:
        file.write(_lines(rows))


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
  return ''.join(json.dumps(row) + '\n' for row in rows)


def note_failure(
  workdir: Path, config: Configuration, state: str, error: str
) -> None:
  """Writes an error into the status of this configuration's run, if begun.

  The folder of another run, of a finished one, or one in use is left alone. If
  the status cannot be written, the line on the terminal has to do.
  """
  status, before = workdir / 'status.json', {'step': 0}
  with contextlib.suppress(OSError, DataError, HostError):
    check_unclaimed(workdir)
    kept = files.read_json(workdir / 'config.json', CONFIG)
    finished = (workdir / 'results.json').exists()
    if finished or kept['hash'] != config.hash:
      return
    # The status itself may be what is broken.
    with contextlib.suppress(DataError):
      before = files.read_json(status, STATUS)
    after = {**before, 'state': state, 'error': error, 'heartbeat': time.time()}
    files.write_whole(status, json.dumps(after, indent=2) + '\n')


# A file beside shipped code that names its commit.
COMMIT = 'COMMIT'
# Pathspecs, from the top of the checkout, whose changes make a run dirty.
CODE = (
  'pdl_jax', 'configs', 'launch.py', 'requirements.txt',
  'requirements-nodeps.txt',
)  # fmt: skip


def environment(
  mesh: Mapping[str, int], code: Iterable[str] = CODE
) -> dict[str, Any]:
  """Collects what a result depends on besides the configuration."""
  import jax

  return {
    'commit': _git('rev-parse', 'HEAD') or _shipped(),
    # Only of the code: an experiment writes its records while it runs.
    'dirty': bool(_git(
      'status', '--porcelain', '--untracked-files=no', '--',
      *(f':(top){path}' for path in code),
    )),
    'python': platform.python_version(),
    'packages': {name: metadata.version(name) for name in _PACKAGES},
    'plugins': _installed(_PLUGINS),
    'platform': platform.platform(),
    'cpus': os.cpu_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'libtpu_init_args': os.environ.get('LIBTPU_INIT_ARGS', ''),
    'jax': {name: getattr(jax.config, name) for name in _JAX_SETTINGS},
    'backend': jax.default_backend(),
    'devices': [str(device) for device in jax.devices()],
    'mesh': dict(mesh),
  }


def _installed(names: Iterable[str]) -> dict[str, str]:
  """Returns the versions of those packages that there are."""
  found = {}
  for name in names:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[name] = metadata.version(name)
  return found


def _shipped() -> str | None:
  """Returns the commit of code that was shipped without a checkout."""
  path = Path(__file__).parent.parent / COMMIT
  return path.read_text('utf-8') if path.exists() else None


def _git(*arguments: str) -> str | None:
  """Runs git in the code's checkout; None outside of one."""
  here = Path(__file__).parent
  try:
    done = subprocess.run(
      ['git', *arguments], cwd=here, capture_output=True, encoding='utf-8'
    )
  except FileNotFoundError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None
