"""Compute Engine: a managed instance group of machines with GPUs."""

from pdl_jax.cluster.pods import remote
from pdl_jax.cluster.pods.plan import Command, Plan, Step
from pdl_jax.cluster.pods.pod import Pod
from pdl_jax.cluster.pods.training import Training

# Of the first process.
_PORT = 8476
_COMPUTE = 'gcloud', 'compute'
_GROUP = (*_COMPUTE, 'instance-groups', 'managed')
_TEMPLATE = (*_COMPUTE, 'instance-templates')
# A new machine answers some time after it runs.
_PATIENCE = '-oConnectionAttempts=60'


def plan(pod: Pod, training: Training) -> Plan:
  """Plain machines: each is told the first one's address and its own number."""
  hosts = [f'{pod.name}-{index}' for index in range(pod.hosts)]

  def ssh(host: str, line: str) -> Command:
    return (
      *_COMPUTE, 'ssh', host, *remote.zone(pod), f'--ssh-flag={_PATIENCE}',
      f'--command={line}',
    )  # fmt: skip

  def scp(host: str) -> Command:
    return (
      *_COMPUTE, 'scp', str(training.packed), f'{host}:', *remote.zone(pod),
      f'--scp-flag={_PATIENCE}',
    )  # fmt: skip

  def on_all(name: str, *lines: str) -> Step:
    each = lines * len(hosts) if len(lines) == 1 else lines
    return Step(
      name,
      tuple(
        ssh(host, remote.in_code(training, line))
        for host, line in zip(hosts, each, strict=True)
      ),
    )

  starts = [
    training.script(
      'start.sh', str(index), str(training.logs),
      *training.command(
        f'--coordinator={hosts[0]}:{_PORT}', f'--num_processes={pod.hosts}',
        f'--process_id={index}',
      ),
    )
    for index in range(pod.hosts)
  ]  # fmt: skip
  install = remote.install(training, 'cuda12')
  return Plan(
    ('git', 'gcloud'), {},
    (
      Step.of('pack the code of the last commit', *training.pack),
      *(_make_group(pod, hosts) if pod.made else ()),
      Step('ship it to all hosts', tuple(map(scp, hosts))),
      Step(
        'unpack and install', tuple(ssh(host, install) for host in hosts)
      ),
      *remote.mounted(pod, on_all),
      on_all('start the training', *starts),
    ),
    remote.later(
      pod, training, lambda line: ssh(hosts[0], line),
      (
        (*_GROUP, 'delete', pod.name, *remote.zone(pod)),
        (*_TEMPLATE, 'delete', pod.name, '--quiet'),
      ),
    ),
  )  # fmt: skip


def _make_group(pod: Pod, hosts: list[str]) -> tuple[Step, ...]:
  project, family = pod.image.split('/')
  spot = (
    '--provisioning-model=SPOT', '--instance-termination-action=DELETE'
  )  # fmt: skip
  return (
    Step.of(
      'describe a machine', *_TEMPLATE, 'create', pod.name, '--quiet',
      f'--machine-type={pod.accelerator}', f'--image-project={project}',
      f'--image-family={family}', '--boot-disk-size=200GB',
      '--maintenance-policy=TERMINATE', '--scopes=cloud-platform',
      f'--tags={pod.name}', *(spot if pod.capacity == 'spot' else ()),
    ),
    # Repaired machines would come back empty, without their training.
    Step.of(
      'create an empty group', *_GROUP, 'create', pod.name, *remote.zone(pod),
      f'--template={pod.name}', '--size=0',
      '--default-action-on-vm-failure=do-nothing',
    ),
    # By name, since the first one's is the address of the coordinator.
    *(
      Step.of(
        f'create {host}', *_GROUP, 'create-instance', pod.name,
        f'--instance={host}', *remote.zone(pod),
      )
      for host in hosts
    ),
    Step.of(
      'wait until all run', *_GROUP, 'wait-until', pod.name, *remote.zone(pod),
      '--stable', '--timeout=3600',
    ),
  )  # fmt: skip
