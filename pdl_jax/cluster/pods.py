"""Pods: machines of others that run one training together.

Each kind is a template, pods/KIND.sh, and a section of docs/pods.md:

  ## NAME            begins a step; "## To ..." what one may need afterwards
  ## ... # if SHARE  leaves it out where that is empty
  ${HOST}            repeats a command, or the step it names, for every host

A line is split into words first and filled in afterwards, so that no value is
read as shell. A word of several words, as in '--command=cd ${CODE} && ...', is
read by a shell on the host: what is filled in there is quoted.
"""

import concurrent.futures
import dataclasses
import re
import shlex
import shutil
import string
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from pdl_jax import run_folder
from pdl_jax.cluster import options
from pdl_jax.errors import ConfigError, HostError

# Where the hosts of Compute Engine and Cloud TPU mount --share.
MOUNT = '/mnt/shared'
_TEMPLATES = Path(__file__).parent / 'pods'
# docs.cloud.google.com/tpu/docs/runtimes; older TPUs share the last one.
_RUNTIMES = {
  'v6e': 'v2-alpha-tpuv6e', 'v5p': 'v2-alpha-tpuv5',
  'v5litepod': 'v2-alpha-tpuv5-lite', '': 'tpu-ubuntu2204-base',
}  # fmt: skip
# Where one gets the programs.
_SOURCES = {
  'git': 'from https://git-scm.com',
  'gcloud': 'with https://cloud.google.com/sdk/docs/install',
  'kubectl': 'by gcloud components install kubectl',
  'xpk': 'by pip install xpk',
  'sbatch': 'on the login node of a Slurm cluster; start it there',
}


class _Kind(NamedTuple):
  """What a kind of pod has to be told, may be told, and runs on the way."""

  needed: tuple[str, ...]
  optional: tuple[str, ...]
  programs: tuple[str, ...]
  longest_name: int


# What says how machines are made, which those that exist are not told.
_OF_NEW = ('accelerator', 'image', 'capacity')
_MADE = (*_OF_NEW, 'share')
_KINDS = {
  'tpu-vm': _Kind(('zone',), _MADE, ('git', 'gcloud'), 60),
  'queued-resource': _Kind(('zone',), _MADE, ('git', 'gcloud'), 60),
  'mig': _Kind(('zone', 'hosts'), _MADE, ('git', 'gcloud'), 60),
  # xpk names Kubernetes objects after a workload, which leaves it 40 letters.
  'xpk': _Kind(
    ('zone', 'cluster', 'accelerator', 'share'), ('image',),
    ('git', 'xpk', 'gcloud', 'kubectl'), 40,
  ),
  'slurm': _Kind(('accelerator', 'hosts'), (), ('git', 'sbatch'), 200),
}  # fmt: skip

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
  """What the flags above say; '' and 0 are what was not said."""

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
    kind, given = _KINDS[self.kind], self._given()
    if missing := [name for name in kind.needed if name not in given]:
      raise ConfigError(f'--pod_kind={self.kind} needs {_flags(missing)}')
    known = ('kind', 'name', *kind.needed, *kind.optional)
    if unread := [name for name in given if name not in known]:
      raise ConfigError(
        f'--pod_kind={self.kind} does not read {_flags(unread)}'
      )
    legal = re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', self.name)
    if not legal or len(self.name) > kind.longest_name:
      raise ConfigError(
        f'--pod={self.name} has to be lower case letters, digits and hyphens, '
        f'begin with a letter and be at most {kind.longest_name} long'
      )
    self._check_made()
    mounted = self.share and self.kind != 'xpk'
    if mounted and not re.fullmatch('gs://[^/]+|[^/:]+:/[^/].*', self.share):
      raise ConfigError(
        f'--share={self.share} is neither IP:/EXPORT of a file server nor '
        'gs://BUCKET'
      )

  def _check_made(self) -> None:
    """Checks the flags that say how machines are made."""
    if not self.accelerator and (self.image or self.capacity):
      raise ConfigError(
        f'--{"image" if self.image else "capacity"} says how machines are '
        'made, and without --accelerator those that exist are used'
      )
    tpu = self.accelerator and self.kind in ('tpu-vm', 'queued-resource')
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
    slurm = self.kind == 'slurm'
    if slurm and not re.fullmatch('(.*:)?[1-9][0-9]*', self.accelerator):
      raise ConfigError(
        f'--accelerator={self.accelerator} is not the GPUs of a Slurm node, '
        'as in 8 or h100:8'
      )

  @property
  def runtime(self) -> str:
    """Returns the image or its default; of a TPU the runtime version."""
    series = self.accelerator.partition('-')[0]
    default = _RUNTIMES.get(series, _RUNTIMES[''])
    return self.image or ('python:3.12' if self.kind == 'xpk' else default)

  def flags(self, without: tuple[str, ...] = ()) -> list[str]:
    """Lists the flags that give this pod, except those of some fields."""
    return [
      f'--{_FLAGS[name]}={value}'
      for name, value in self._given().items()
      if name not in without
    ]

  def _given(self) -> dict[str, str | int]:
    return {name: x for name, x in dataclasses.asdict(self).items() if x}


# The flag of each field.
_FLAGS = {
  field.name: {'kind': 'pod_kind', 'name': 'pod'}.get(field.name, field.name)
  for field in dataclasses.fields(Pod)
}


def _flags(names: Sequence[str]) -> str:
  return ', '.join(f'--{_FLAGS[name]}' for name in names)


def pod() -> Pod | None:
  """Makes the pod that the flags describe; None without --pod."""
  told = {name: flags.FLAGS[flag] for name, flag in _FLAGS.items()}
  if told['name'].value is None:
    if alone := [flag.name for flag in told.values() if flag.present]:
      raise ConfigError(f'--{alone[0]} belongs to --pod=NAME')
    return None
  given = {name: flag.value for name, flag in told.items() if flag.value}
  return Pod(**{'name': '', **given})


def check_shipped(pretrained: str) -> None:
  """Refuses a model that the hosts will not find."""
  _, _, place = pretrained.rpartition(':')
  if '/' in place and not Path(place).is_absolute():
    raise ConfigError(
      f'--pod ships no models: model.pretrained {pretrained} has to be below '
      f'a folder that all hosts see, as in {MOUNT}/{place}'
    )


def without(arguments: Sequence[str]) -> list[str]:
  """Drops the flags of the pod and --workdir from arguments."""
  return options.without(arguments, {*_FLAGS.values(), 'workdir'})


def workdir(pod: Pod, here: Path, given: bool) -> Path:
  """Returns the run folder as the hosts see it.

  Args:
    here: the same as it would be on this machine.
    given: whether --workdir says it.
  """
  if pod.kind == 'slurm':
    return Path.cwd() / here
  if pod.kind == 'xpk' and not (given and here.is_absolute()):
    raise ConfigError(
      '--pod_kind=xpk needs --workdir=FOLDER below the mount point of '
      f'the storage {pod.share}'
    )
  if pod.kind == 'xpk':
    return here
  if given and Path(MOUNT) not in here.parents:
    raise ConfigError(
      f'--workdir={here} has to be below {MOUNT}, which all hosts see'
    )
  return Path(MOUNT) / here  # Which is `here` where that is absolute.


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
  def pack(self) -> tuple[str, ...]:
    """The command that packs the code, and which commit it is of."""
    return (
      'git', 'archive', f'--prefix={self.code}/',
      f'--add-virtual-file={self.code}/{run_folder.COMMIT}:{self.commit}',
      f'--output={self.packed}', self.commit, *run_folder.CODE,
    )  # fmt: skip


def committed(arguments: Sequence[str], workdir: Path) -> Training:
  """Describes a training with the code of the last commit."""
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


Command = tuple[str, ...]
Values = Mapping[str, str | Command]


class Step(NamedTuple):
  """Commands that run at the same time, and what they do."""

  name: str
  commands: tuple[Command, ...]


class Plan(NamedTuple):
  """How to start a pod.

  Attributes:
    programs: what has to be on the PATH.
    files: path -> text, written first.
    steps: in their order; each has to succeed before the next.
    later: what one needs afterwards, printed and not run.
  """

  programs: tuple[str, ...]
  files: dict[Path, str]
  steps: tuple[Step, ...]
  later: tuple[Step, ...]


def plan(pod: Pod, training: Training) -> Plan:
  """Plans how to start a training on a pod; nothing is looked up or run."""
  logs = training.workdir / 'logs'
  values, files = _values(pod, training, logs), {}
  if pod.kind == 'slurm':
    script = (_TEMPLATES / 'job.sbatch').read_text('utf-8')
    files[logs / 'job.sbatch'] = _fill(script, _quoted(values))
  hosts = [
    {**values, 'HOST': f'{pod.name}-{index}', 'INDEX': str(index)}
    for index in range(max(pod.hosts, 1))
  ]
  text = (_TEMPLATES / f'{pod.kind}.sh').read_text('utf-8')
  steps = tuple(_steps(text, hosts))
  later = tuple(step for step in steps if step.name.startswith('To '))
  first = steps[: len(steps) - len(later)]
  return Plan(_KINDS[pod.kind].programs, files, first, later)


def _values(pod: Pod, training: Training, logs: Path) -> Values:
  """Returns what templates may name; several words, or none, as a tuple."""
  own = (*training.arguments, f'--workdir={training.workdir}')
  again = ('python', 'launch.py', *own)
  project, _, family = pod.image.partition('/')
  spot = '--provisioning-model=SPOT', '--instance-termination-action=DELETE'
  capacity = () if pod.capacity in ('', 'on-demand') else (f'--{pod.capacity}',)
  return {
    'NAME': pod.name,
    'ZONE': pod.zone,
    'ACCELERATOR': pod.accelerator,
    'HOSTS': str(pod.hosts),
    'FIRST': f'{pod.name}-0',
    'IMAGE': pod.runtime,
    'IMAGE_PROJECT': project,
    'IMAGE_FAMILY': family,
    'SHARE': pod.share,
    'MOUNT': MOUNT,
    'CAPACITY': spot if capacity and pod.kind == 'mig' else capacity,
    'CLUSTER': pod.cluster,
    'TASKS': pod.accelerator.rpartition(':')[2],
    'PACK': training.pack,
    'PACKED': str(training.packed),
    'PACKED_IN': str(training.packed.parent),
    'ARCHIVE': training.packed.name,
    'CODE': training.code,
    # Where Slurm's login node unpacks the code, on the disk all nodes see.
    'PODS': str(Path.cwd() / '.cache' / 'pods'),
    'LOGS': str(logs),
    'JOB_LOG': f'{logs}/slurm.log',
    'NODE_LOG': f'{logs}/host-%n.log',
    'TRAIN': ('.venv/bin/python', 'launch.py', *own, '--multihost'),
    'RESUME': (*again, *pod.flags()),
    'RESUME_HERE': (*again, *pod.flags(without=_OF_NEW)),
  }


def _steps(text: str, hosts: Sequence[Values]) -> Iterator[Step]:
  """Reads the steps of a template; hosts are the values of each host."""
  _, *sections = re.sub(r'\\\n *', '', text).split('\n## ')
  for section in sections:
    heading, *lines = section.splitlines()
    name, _, condition = heading.partition('  # if ')
    if condition and not hosts[0][condition]:
      continue
    lines = [line for line in lines if not line.startswith('#')]
    for group in [[x] for x in hosts] if '${HOST}' in name else [hosts]:
      commands = tuple(
        _command(line, values)
        for line in lines
        for values in (group if '${HOST}' in line else group[:1])
      )
      yield Step(_fill(name, group[0]), commands)


def _command(line: str, values: Values) -> Command:
  words: list[str] = []
  for word in shlex.split(line):
    alone = re.fullmatch(r'\$\{(\w+)\}', word)
    value = values[alone[1]] if alone else None
    if isinstance(value, tuple):
      words += value
    else:
      words.append(_fill(word, _quoted(values) if ' ' in word else values))
  return tuple(words)


def _quoted(values: Values) -> dict[str, str]:
  return {
    name: shlex.quote(value) if isinstance(value, str) else shlex.join(value)
    for name, value in values.items()
  }


def _fill(text: str, values: Values) -> str:
  return string.Template(text).substitute(values)


def to_shell(plan: Plan) -> str:
  """Writes the plan as shell to be pasted; what comes later is in comments."""
  parts = []
  for path, text in plan.files.items():
    folder, file = shlex.quote(str(path.parent)), shlex.quote(str(path))
    parts += [f'# Written first: {path}', f'mkdir -p {folder}']
    parts += [f"cat > {file} <<'END_OF_FILE'\n{text}END_OF_FILE", '']
  for number, step in enumerate(plan.steps, 1):
    parts.append(f'# {number}/{len(plan.steps)} {step.name}')
    lines = [shlex.join(command) for command in step.commands]
    together = len(lines) > 1
    parts += [f'{line} &' if together else line for line in lines]
    parts += ['wait', ''] if together else ['']
  return '\n'.join(parts) + '\n' + later_to_shell(plan)


def later_to_shell(plan: Plan) -> str:
  """Writes what one needs afterwards, in comments."""
  lines: list[str] = []
  for step in plan.later:
    lines.append(f'# {step.name}:')
    lines += [f'#   {shlex.join(command)}' for command in step.commands]
  return '\n'.join(lines)


def run(plan: Plan) -> None:
  """Runs the steps, printing each and what it prints."""
  for program in plan.programs:
    if shutil.which(program) is None:
      raise HostError(
        f'--pod needs the program {program}, which is not on the PATH; it '
        f'comes {_SOURCES[program]}'
      )
  for path, text in plan.files.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, 'utf-8')
  try:
    for number, step in enumerate(plan.steps, 1):
      print(f'# {number}/{len(plan.steps)} {step.name}', flush=True)
      _run_step(step)
  finally:
    # After a failure too: what was made by then costs.
    print(later_to_shell(plan), flush=True)


def _run_step(step: Step) -> None:
  for command in step.commands:
    print(shlex.join(command), flush=True)
  try:
    with concurrent.futures.ThreadPoolExecutor(len(step.commands)) as pool:
      ends = list(pool.map(_run_command, step.commands))
  except KeyboardInterrupt:
    # The commands have had it too, from the terminal.
    raise HostError(
      f'interrupted in the step "{step.name}"; what was made until then stays, '
      'and the commands above delete it'
    ) from None
  for code, last in ends:
    if code:
      raise HostError(
        f'the step "{step.name}" ended with exit code {code}: {last}'
      )


def _run_command(command: Command) -> tuple[int, str]:
  """Returns its exit code, and the last line that it printed."""
  last = 'it printed nothing'
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    encoding='utf-8', errors='replace',
  ) as process:  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
      print(line, end='', flush=True)
      last = line.strip() or last
  return process.returncode, last
