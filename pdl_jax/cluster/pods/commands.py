"""The commands of each kind of pod, as its cloud spells them."""

from pdl_jax.cluster.pods import cloud_tpu, mig, slurm, xpk
from pdl_jax.cluster.pods.plan import Plan
from pdl_jax.cluster.pods.pod import Pod
from pdl_jax.cluster.pods.training import Training

_MAKERS = {
  'tpu-vm': cloud_tpu.tpu_vm, 'queued-resource': cloud_tpu.queued_resource,
  'mig': mig.plan, 'xpk': xpk.plan, 'slurm': slurm.plan,
}  # fmt: skip


def plan(pod: Pod, training: Training) -> Plan:
  """How to start a training on a pod; nothing is looked up or run."""
  return _MAKERS[pod.kind](pod, training)
