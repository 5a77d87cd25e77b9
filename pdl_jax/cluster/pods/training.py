"""A training: what to run on every host of a pod, and with which code."""

import dataclasses
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pdl_jax import run_folder
from pdl_jax.errors import ConfigError, HostError

_SCRIPTS = 'pdl_jax/cluster/pods'


@dataclasses.dataclass(frozen=True)
class Training:
  """One run, to be started on a pod.

  Attributes:
    arguments: of launch.py, without those of the pod and --workdir.
    workdir: the run folder, as the hosts see it.
    commit: of the code.
    packed: where the code is put as one file, on this machine.
  """

  arguments: tuple[str, ...]
  workdir: Path
  commit: str
  packed: Path

  @property
  def code(self) -> str:
    """The folder that the packed code makes."""
    return self.packed.name.removesuffix('.tar.gz')

  @property
  def logs(self) -> Path:
    """Where each host writes host-<index>.log."""
    return self.workdir / 'logs'

  @property
  def pack(self) -> tuple[str, ...]:
    """The command that packs the code, and which commit it is of."""
    return (
      'git', 'archive', f'--prefix={self.code}/',
      f'--add-virtual-file={self.code}/{run_folder.COMMIT}:{self.commit}',
      f'--output={self.packed}', self.commit, *run_folder.CODE,
    )  # fmt: skip

  @property
  def tail(self) -> str:
    """A shell line that shows the logs as they grow."""
    logs = shlex.quote(str(self.logs))
    return f'tail --lines=20 --follow=name {logs}/host-*.log'

  def script(self, name: str, *arguments: str) -> str:
    """A shell command that runs a script of this package, from the code."""
    return shlex.join(('bash', f'{_SCRIPTS}/{name}', *arguments))

  def command(self, *more: str) -> tuple[str, ...]:
    """The command of a host, from the code."""
    return (
      '.venv/bin/python', 'launch.py', *self.arguments,
      f'--workdir={self.workdir}', '--multihost', *more,
    )  # fmt: skip

  def again(self, flags: Sequence[str]) -> tuple[str, ...]:
    """The command that continues this run, on a pod of these flags."""
    return (
      'python', 'launch.py', *self.arguments, f'--workdir={self.workdir}',
      *flags,
    )  # fmt: skip


def committed(arguments: Sequence[str], workdir: Path) -> Training:
  """A training with the code of the last commit.

  Raises:
    ConfigError: what would be shipped differs from the commit.
    HostError: the working folder is not the top of a checkout.
  """
  top = _git('rev-parse', '--show-toplevel')
  if Path(top).resolve() != Path.cwd().resolve():
    raise HostError(
      f'--pod ships the code of the checkout {top}; start it in that folder'
    )
  changed = _git('status', '--porcelain', '--', *run_folder.CODE).splitlines()
  if changed:
    more = f' and {len(changed) - 1} more' if len(changed) > 1 else ''
    raise ConfigError(
      f'--pod ships the last commit, from which {changed[0][3:]}{more} '
      'differs; commit it first'
    )
  commit = _git('rev-parse', 'HEAD')
  packed = Path(tempfile.gettempdir(), f'pdl_jax-{commit[:12]}.tar.gz')
  return Training(tuple(arguments), workdir, commit, packed)


def _git(*arguments: str) -> str:
  try:
    done = subprocess.run(
      ['git', *arguments], capture_output=True, encoding='utf-8', check=True
    )
  except (OSError, subprocess.CalledProcessError) as error:
    raise HostError(
      '--pod ships the code by git, and there is no git or no checkout in '
      f'{Path.cwd()}'
    ) from error
  # Not strip(): the first letters of a status line may be blanks.
  return done.stdout.rstrip()
