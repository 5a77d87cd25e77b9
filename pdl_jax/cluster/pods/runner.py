"""Carries out a plan, and says what to do next or how to clean up."""

import concurrent.futures
import shlex
import shutil
import subprocess

from pdl_jax.cluster.pods.plan import Command, Plan, Step, later_to_shell
from pdl_jax.errors import HostError

# Where one gets the programs.
_SOURCES = {
  'git': 'from https://git-scm.com',
  'gcloud': 'with https://cloud.google.com/sdk/docs/install',
  'kubectl': 'by gcloud components install kubectl',
  'xpk': 'by pip install xpk',
  'sbatch': 'on the login node of a Slurm cluster; start it there',
}


def run(plan: Plan) -> None:
  """Runs the steps, printing each and what it prints.

  Raises:
    HostError: a program is missing, a step has failed or was interrupted.
  """
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
  """Its exit code, and the last line that it printed."""
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
