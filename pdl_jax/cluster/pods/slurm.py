"""Slurm: a batch job on a cluster with GPUs."""

import shlex
from pathlib import Path

from pdl_jax.cluster.pods.plan import Plan, Step
from pdl_jax.cluster.pods.pod import Pod
from pdl_jax.cluster.pods.training import Training
from pdl_jax.errors import PreemptedError

# Seconds before the end of its time at which a job is told to save.
_GRACE = 120


def plan(pod: Pod, training: Training) -> Plan:
  """A batch job; everything else happens on the login node."""
  folder = _code(training)
  file = training.logs / 'job.sbatch'
  return Plan(
    ('git', 'sbatch'),
    {file: _script(pod, training)},
    (
      Step.of('pack the code of the last commit', *training.pack),
      Step.of(
        'unpack it', 'tar', '-xzf', str(training.packed),
        f'--one-top-level={folder.parent}',
      ),
      Step.of(
        'install', 'bash', f'{folder}/pdl_jax/cluster/pods/setup.sh', 'cuda12'
      ),
      Step.of('submit the job', 'sbatch', str(file)),
    ),
    {
      'see the logs of all hosts': (('bash', '-c', training.tail),),
      'stop it, with the KillWait of the cluster to save': (
        ('scancel', f'--name={pod.name}'),
      ),
      'resume it': (training.again(pod.flags),),
    },
  )  # fmt: skip


def _code(training: Training) -> Path:
  """Where the code of a commit is unpacked, on the disk all nodes see."""
  return Path.cwd() / '.cache' / 'pods' / training.code


def _script(pod: Pod, training: Training) -> str:
  """Text for sbatch: one task a GPU, which is how JAX reads Slurm's variables.

  Partition, account and time limit are left to SBATCH_PARTITION,
  SBATCH_ACCOUNT and SBATCH_TIMELIMIT.
  """
  own, hosts = (
    shlex.quote(f'{training.logs}/{name}.log') for name in ('slurm', 'host-%n')
  )
  return f"""#!/bin/bash
#SBATCH --job-name={pod.name}
#SBATCH --nodes={pod.hosts}
#SBATCH --gpus-per-node={pod.accelerator}
#SBATCH --ntasks-per-node={pod.accelerators_a_host}
#SBATCH --output={own}
#SBATCH --open-mode=append
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --signal=TERM@{_GRACE}
cd {shlex.quote(str(_code(training)))} || exit
# Each task sees all GPUs of its node; JAX takes the one of its local number.
srun --label --open-mode=append \\
  --output={hosts} \\
  {shlex.join(training.command())}
code=$?
if test $code = {PreemptedError.exit_code}; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""
