# A TPU VM, made when its turn has come.
## pack the code of the last commit
${PACK}
## queue for a TPU  # if ACCELERATOR
gcloud compute tpus queued-resources create ${NAME} --zone=${ZONE} --quiet \
  --node-id=${NAME} --accelerator-type=${ACCELERATOR} \
  --runtime-version=${IMAGE} ${CAPACITY}
## wait until it is active  # if ACCELERATOR
bash pdl_jax/cluster/pods/wait.sh ${NAME} ${ZONE}
## ship it to all hosts
gcloud compute tpus tpu-vm scp ${PACKED} ${NAME}: --zone=${ZONE} --quiet \
  --worker=all
## unpack and install
gcloud compute tpus tpu-vm ssh ${NAME} --zone=${ZONE} --quiet --worker=all \
  '--command=tar -xzf ${ARCHIVE} && cd ${CODE} && \
    bash pdl_jax/cluster/pods/setup.sh tpu'
## mount what the hosts share  # if SHARE
gcloud compute tpus tpu-vm ssh ${NAME} --zone=${ZONE} --quiet --worker=all \
  '--command=cd ${CODE} && bash pdl_jax/cluster/pods/mount.sh ${SHARE} ${MOUNT}'
## start the training
gcloud compute tpus tpu-vm ssh ${NAME} --zone=${ZONE} --quiet --worker=all \
  '--command=cd ${CODE} && bash pdl_jax/cluster/pods/start.sh tpu \
    ${LOGS} ${TRAIN}'
## To see the logs of all hosts
gcloud compute tpus tpu-vm ssh ${NAME} --zone=${ZONE} --quiet --worker=0 \
  '--command=tail --lines=20 --follow=name ${LOGS}/host-*.log'
## To stop it, so that it saves first
gcloud compute tpus tpu-vm ssh ${NAME} --zone=${ZONE} --quiet --worker=0 \
  '--command=pkill -TERM --pidfile /tmp/pdl_jax.pid'
## To resume it on these machines
${RESUME_HERE}
## To resume it on new machines, if these were preempted  # if ACCELERATOR
gcloud compute tpus queued-resources delete ${NAME} --zone=${ZONE} --quiet \
  --force
${RESUME}
## To delete the machines, which cost until then
gcloud compute tpus queued-resources delete ${NAME} --zone=${ZONE} --quiet \
  --force
