# 1/7 pack the code of the last commit
git archive --prefix=pdl_jax-0123456789ab/ --add-virtual-file=pdl_jax-0123456789ab/COMMIT:0123456789abcdef0123456789abcdef01234567 --output=/tmp/pdl_jax-0123456789ab.tar.gz 0123456789abcdef0123456789abcdef01234567 pdl_jax configs launch.py requirements.txt requirements-nodeps.txt

# 2/7 queue for a TPU
gcloud compute tpus queued-resources create v5 --zone=us-west4-a --quiet --node-id=v5 --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --reserved

# 3/7 wait until it is active
bash pdl_jax/cluster/pods/wait.sh v5 us-west4-a

# 4/7 ship it to all hosts
gcloud compute tpus tpu-vm scp /tmp/pdl_jax-0123456789ab.tar.gz v5: --zone=us-west4-a --quiet --worker=all

# 5/7 unpack and install
gcloud compute tpus tpu-vm ssh v5 --zone=us-west4-a --quiet --worker=all '--command=tar -xzf pdl_jax-0123456789ab.tar.gz && cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/setup.sh tpu'

# 6/7 mount what the hosts share
gcloud compute tpus tpu-vm ssh v5 --zone=us-west4-a --quiet --worker=all '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/mount.sh gs://my-runs /mnt/shared'

# 7/7 start the training
gcloud compute tpus tpu-vm ssh v5 --zone=us-west4-a --quiet --worker=all '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/start.sh tpu '"'"'/mnt/shared/runs/a run/logs'"'"' .venv/bin/python launch.py --config=configs/summarize.py '"'"'--workdir=/mnt/shared/runs/a run'"'"' --multihost'

# To see the logs of all hosts:
#   gcloud compute tpus tpu-vm ssh v5 --zone=us-west4-a --quiet --worker=0 '--command=tail --lines=20 --follow=name '"'"'/mnt/shared/runs/a run/logs'"'"'/host-*.log'
# To stop it, so that it saves first:
#   gcloud compute tpus tpu-vm ssh v5 --zone=us-west4-a --quiet --worker=0 '--command=pkill -TERM --pidfile /tmp/pdl_jax.pid'
# To resume it on these machines:
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=queued-resource --pod=v5 --zone=us-west4-a --share=gs://my-runs
# To resume it on new machines, if these were preempted:
#   gcloud compute tpus queued-resources delete v5 --zone=us-west4-a --quiet --force
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=queued-resource --pod=v5 --zone=us-west4-a --accelerator=v5litepod-16 --share=gs://my-runs --capacity=reserved
# To delete the machines, which cost until then:
#   gcloud compute tpus queued-resources delete v5 --zone=us-west4-a --quiet --force
