"""Cloud TPU: TPU VMs, at once or by a queued resource."""

from pdl_jax.cluster.pods import remote
from pdl_jax.cluster.pods.plan import Command, Plan, Step
from pdl_jax.cluster.pods.pod import Pod
from pdl_jax.cluster.pods.training import Training

_TPU_VM = 'gcloud', 'compute', 'tpus', 'tpu-vm'
_QUEUED = 'gcloud', 'compute', 'tpus', 'queued-resources'


def tpu_vm(pod: Pod, training: Training) -> Plan:
  """A TPU VM, made at once or not at all."""
  create = Step.of(
    'create the TPU', *_TPU_VM, 'create', pod.name, *remote.zone(pod),
    f'--accelerator-type={pod.accelerator}', f'--version={pod.runtime}',
    *_capacity(pod),
  )  # fmt: skip
  delete = (*_TPU_VM, 'delete', pod.name, *remote.zone(pod))
  return _on_tpu(pod, training, (create,), delete)


def queued_resource(pod: Pod, training: Training) -> Plan:
  """A TPU VM, made when its turn has come."""
  create = Step.of(
    'queue for a TPU', *_QUEUED, 'create', pod.name, *remote.zone(pod),
    f'--node-id={pod.name}', f'--accelerator-type={pod.accelerator}',
    f'--runtime-version={pod.runtime}', *_capacity(pod),
  )  # fmt: skip
  wait = Step.of(
    'wait until it is active', 'bash', 'pdl_jax/cluster/pods/wait.sh', pod.name,
    pod.zone,
  )  # fmt: skip
  delete = (*_QUEUED, 'delete', pod.name, *remote.zone(pod), '--force')
  return _on_tpu(pod, training, (create, wait), delete)


def _on_tpu(
  pod: Pod, training: Training, make: tuple[Step, ...], delete: Command
) -> Plan:
  """What both ways to a Cloud TPU share: one command reaches all its hosts."""
  ssh = (*_TPU_VM, 'ssh', pod.name, *remote.zone(pod))
  scp = (
    *_TPU_VM, 'scp', str(training.packed), f'{pod.name}:', *remote.zone(pod)
  )  # fmt: skip
  start = training.script(
    'start.sh', 'tpu', str(training.logs), *training.command()
  )

  def on_all(name: str, line: str) -> Step:
    return Step.of(
      name, *ssh, '--worker=all', f'--command={remote.in_code(training, line)}'
    )

  return Plan(
    ('git', 'gcloud'), {},
    (
      Step.of('pack the code of the last commit', *training.pack),
      *(make if pod.made else ()),
      Step.of('ship it to all hosts', *scp, '--worker=all'),
      Step.of(
        'unpack and install', *ssh, '--worker=all',
        f'--command={remote.install(training, "tpu")}',
      ),
      *remote.mounted(pod, on_all),
      on_all('start the training', start),
    ),
    remote.later(
      pod, training,
      lambda line: (*ssh, '--worker=0', f'--command={line}'), (delete,),
    ),
  )  # fmt: skip


def _capacity(pod: Pod) -> tuple[str, ...]:
  return (f'--{pod.capacity}',) if pod.capacity in ('spot', 'reserved') else ()
