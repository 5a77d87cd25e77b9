# A JobSet on GKE; xpk puts the code into an image.
## pack the code of the last commit
${PACK}
## unpack it for the image
tar -xzf ${PACKED} --directory=${PACKED_IN}
## submit the workload
# Restarts after a preemption, 75, and after 4, with which the other hosts end
# when one has died. exec: xpk passes SIGTERM to this shell and not below it.
xpk workload create --workload=${NAME} --cluster=${CLUSTER} --zone=${ZONE} \
  --tpu-type=${ACCELERATOR} ${SLICES} --storage=${SHARE} --base-docker-image=${IMAGE} \
  --script-dir=${PACKED_IN}/${CODE} --max-restarts=10 \
  --restart-on-exit-codes=4,75 --termination-grace-period-seconds=120 \
  '--command=bash pdl_jax/cluster/pods/setup.sh tpu && \
    exec bash pdl_jax/cluster/pods/start.sh gke ${LOGS} ${TRAIN}'
## To see the logs of all hosts
kubectl logs --follow --prefix --max-log-requests=256 \
  --selector=jobset.sigs.k8s.io/jobset-name=${NAME}
## To stop it, with 120 s to save
xpk workload delete --workload=${NAME} --cluster=${CLUSTER} --zone=${ZONE} \
  --force
## To resume it
xpk workload delete --workload=${NAME} --cluster=${CLUSTER} --zone=${ZONE} \
  --force
${RESUME}
