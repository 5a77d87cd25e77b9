# A managed instance group: each machine is told the first one's address and its
# own number. A new machine answers some time after it runs.
## pack the code of the last commit
${PACK}
## describe a machine  # if ACCELERATOR
gcloud compute instance-templates create ${NAME} --quiet \
  --machine-type=${ACCELERATOR} --image-project=${IMAGE_PROJECT} \
  --image-family=${IMAGE_FAMILY} --boot-disk-size=200GB \
  --maintenance-policy=TERMINATE --scopes=cloud-platform --tags=${NAME} \
  ${CAPACITY}
## create an empty group  # if ACCELERATOR
# Repaired machines would come back empty, without their training.
gcloud compute instance-groups managed create ${NAME} --zone=${ZONE} --quiet \
  --template=${NAME} --size=0 --default-action-on-vm-failure=do-nothing
## create ${HOST}  # if ACCELERATOR
# By name, since the first one's is the address of the coordinator.
gcloud compute instance-groups managed create-instance ${NAME} \
  --instance=${HOST} --zone=${ZONE} --quiet
## wait until all run  # if ACCELERATOR
gcloud compute instance-groups managed wait-until ${NAME} --zone=${ZONE} \
  --quiet --stable --timeout=3600
## ship it to all hosts
gcloud compute scp ${PACKED} ${HOST}: --zone=${ZONE} --quiet \
  --scp-flag=-oConnectionAttempts=60
## unpack and install
gcloud compute ssh ${HOST} --zone=${ZONE} --quiet \
  --ssh-flag=-oConnectionAttempts=60 \
  '--command=tar -xzf ${ARCHIVE} && cd ${CODE} && \
    bash pdl_jax/cluster/pods/setup.sh cuda12'
## mount what the hosts share  # if SHARE
gcloud compute ssh ${HOST} --zone=${ZONE} --quiet \
  --ssh-flag=-oConnectionAttempts=60 \
  '--command=cd ${CODE} && bash pdl_jax/cluster/pods/mount.sh ${SHARE} ${MOUNT}'
## start the training
gcloud compute ssh ${HOST} --zone=${ZONE} --quiet \
  --ssh-flag=-oConnectionAttempts=60 \
  '--command=cd ${CODE} && bash pdl_jax/cluster/pods/start.sh ${INDEX} \
    ${LOGS} ${TRAIN} --coordinator=${FIRST}:8476 \
    --num_processes=${HOSTS} --process_id=${INDEX}'
## To see the logs of all hosts
gcloud compute ssh ${FIRST} --zone=${ZONE} --quiet \
  --ssh-flag=-oConnectionAttempts=60 \
  '--command=tail --lines=20 --follow=name ${LOGS}/host-*.log'
## To stop it, so that it saves first
gcloud compute ssh ${FIRST} --zone=${ZONE} --quiet \
  --ssh-flag=-oConnectionAttempts=60 \
  '--command=pkill -TERM --pidfile /tmp/pdl_jax.pid'
## To resume it on these machines
${RESUME_HERE}
## To resume it on new machines, if these were preempted  # if ACCELERATOR
gcloud compute instance-groups managed delete ${NAME} --zone=${ZONE} --quiet
gcloud compute instance-templates delete ${NAME} --quiet
${RESUME}
## To delete the machines, which cost until then
gcloud compute instance-groups managed delete ${NAME} --zone=${ZONE} --quiet
gcloud compute instance-templates delete ${NAME} --quiet
