# 1/10 pack the code of the last commit
git archive --prefix=pdl_jax-0123456789ab/ --add-virtual-file=pdl_jax-0123456789ab/COMMIT:0123456789abcdef0123456789abcdef01234567 --output=/tmp/pdl_jax-0123456789ab.tar.gz 0123456789abcdef0123456789abcdef01234567 pdl_jax configs launch.py requirements.txt requirements-nodeps.txt

# 2/10 describe a machine
gcloud compute instance-templates create gpu --quiet --machine-type=a3-highgpu-8g --image-project=deeplearning-platform-release --image-family=my-family --boot-disk-size=200GB --maintenance-policy=TERMINATE --scopes=cloud-platform --tags=gpu --provisioning-model=SPOT --instance-termination-action=DELETE

# 3/10 create an empty group
gcloud compute instance-groups managed create gpu --zone=us-central1-a --quiet --template=gpu --size=0 --default-action-on-vm-failure=do-nothing

# 4/10 create gpu-0
gcloud compute instance-groups managed create-instance gpu --instance=gpu-0 --zone=us-central1-a --quiet

# 5/10 create gpu-1
gcloud compute instance-groups managed create-instance gpu --instance=gpu-1 --zone=us-central1-a --quiet

# 6/10 wait until all run
gcloud compute instance-groups managed wait-until gpu --zone=us-central1-a --quiet --stable --timeout=3600

# 7/10 ship it to all hosts
gcloud compute scp /tmp/pdl_jax-0123456789ab.tar.gz gpu-0: --zone=us-central1-a --quiet --scp-flag=-oConnectionAttempts=60 &
gcloud compute scp /tmp/pdl_jax-0123456789ab.tar.gz gpu-1: --zone=us-central1-a --quiet --scp-flag=-oConnectionAttempts=60 &
wait

# 8/10 unpack and install
gcloud compute ssh gpu-0 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=tar -xzf pdl_jax-0123456789ab.tar.gz && cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/setup.sh cuda12' &
gcloud compute ssh gpu-1 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=tar -xzf pdl_jax-0123456789ab.tar.gz && cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/setup.sh cuda12' &
wait

# 9/10 mount what the hosts share
gcloud compute ssh gpu-0 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/mount.sh 10.0.0.2:/runs /mnt/shared' &
gcloud compute ssh gpu-1 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/mount.sh 10.0.0.2:/runs /mnt/shared' &
wait

# 10/10 start the training
gcloud compute ssh gpu-0 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/start.sh 0 '"'"'/mnt/shared/runs/a run/logs'"'"' .venv/bin/python launch.py --config=configs/summarize.py '"'"'--workdir=/mnt/shared/runs/a run'"'"' --multihost --coordinator=gpu-0:8476 --num_processes=2 --process_id=0' &
gcloud compute ssh gpu-1 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/start.sh 1 '"'"'/mnt/shared/runs/a run/logs'"'"' .venv/bin/python launch.py --config=configs/summarize.py '"'"'--workdir=/mnt/shared/runs/a run'"'"' --multihost --coordinator=gpu-0:8476 --num_processes=2 --process_id=1' &
wait

# To see the logs of all hosts:
#   gcloud compute ssh gpu-0 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=tail --lines=20 --follow=name '"'"'/mnt/shared/runs/a run/logs'"'"'/host-*.log'
# To stop it, so that it saves first:
#   gcloud compute ssh gpu-0 --zone=us-central1-a --quiet --ssh-flag=-oConnectionAttempts=60 '--command=pkill -TERM --pidfile /tmp/pdl_jax.pid'
# To resume it on these machines:
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=mig --pod=gpu --zone=us-central1-a --hosts=2 --share=10.0.0.2:/runs
# To resume it on new machines, if these were preempted:
#   gcloud compute instance-groups managed delete gpu --zone=us-central1-a --quiet
#   gcloud compute instance-templates delete gpu --quiet
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=mig --pod=gpu --zone=us-central1-a --accelerator=a3-highgpu-8g --hosts=2 --image=deeplearning-platform-release/my-family --share=10.0.0.2:/runs --capacity=spot
# To delete the machines, which cost until then:
#   gcloud compute instance-groups managed delete gpu --zone=us-central1-a --quiet
#   gcloud compute instance-templates delete gpu --quiet
