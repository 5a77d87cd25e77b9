"""GKE: a workload of xpk."""

from pdl_jax.cluster.pods.plan import Plan, Step
from pdl_jax.cluster.pods.pod import Pod
from pdl_jax.cluster.pods.training import Training
from pdl_jax.errors import HostError, PreemptedError

# Seconds to save in, once Kubernetes wants a host back.
_GRACE = 120
_RESTARTS = 10
# When a host has died the others end with the error of a host.
_RESTART_ON = f'{HostError.exit_code},{PreemptedError.exit_code}'


def plan(pod: Pod, training: Training) -> Plan:
  """A JobSet; xpk puts the code into an image."""
  install = training.script('setup.sh', 'tpu')
  start = training.script(
    'start.sh', 'gke', str(training.logs), *training.command()
  )
  where = f'--cluster={pod.cluster}', f'--zone={pod.zone}'
  delete = (
    'xpk', 'workload', 'delete', f'--workload={pod.name}', *where, '--force'
  )  # fmt: skip
  folder = training.packed.with_name(training.code)
  return Plan(
    ('git', 'xpk', 'gcloud', 'kubectl'), {},
    (
      Step.of('pack the code of the last commit', *training.pack),
      Step.of(
        'unpack it for the image', 'tar', '-xzf', str(training.packed),
        f'--directory={folder.parent}',
      ),
      Step.of(
        'submit the workload', 'xpk', 'workload', 'create',
        f'--workload={pod.name}', *where, f'--tpu-type={pod.accelerator}',
        f'--storage={pod.share}',
        f'--base-docker-image={pod.image or "python:3.12"}',
        f'--script-dir={folder}', f'--max-restarts={_RESTARTS}',
        f'--restart-on-exit-codes={_RESTART_ON}',
        f'--termination-grace-period-seconds={_GRACE}',
        # exec: xpk passes SIGTERM to this shell and to nothing below it.
        f'--command={install} && exec {start}',
      ),
    ),
    {
      'see the logs of all hosts': ((
        'kubectl', 'logs', '--follow', '--prefix', '--max-log-requests=256',
        f'--selector=jobset.sigs.k8s.io/jobset-name={pod.name}',
      ),),
      f'stop it, with {_GRACE} s to save': (delete,),
      'resume it': (delete, training.again(pod.flags)),
    },
  )  # fmt: skip
