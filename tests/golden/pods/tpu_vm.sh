# 1/6 pack the code of the last commit
git archive --prefix=pdl_jax-0123456789ab/ --add-virtual-file=pdl_jax-0123456789ab/COMMIT:0123456789abcdef0123456789abcdef01234567 --output=/tmp/pdl_jax-0123456789ab.tar.gz 0123456789abcdef0123456789abcdef01234567 pdl_jax configs launch.py requirements.txt requirements-nodeps.txt

# 2/6 create the TPU
gcloud compute tpus tpu-vm create v6 --zone=us-east5-a --quiet --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot

# 3/6 ship it to all hosts
gcloud compute tpus tpu-vm scp /tmp/pdl_jax-0123456789ab.tar.gz v6: --zone=us-east5-a --quiet --worker=all

# 4/6 unpack and install
gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=all '--command=tar -xzf pdl_jax-0123456789ab.tar.gz && cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/setup.sh tpu'

# 5/6 mount what the hosts share
gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=all '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/mount.sh 10.0.0.2:/runs /mnt/shared'

# 6/6 start the training
gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=all '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/start.sh tpu '"'"'/mnt/shared/runs/a run/logs'"'"' .venv/bin/python launch.py --config=configs/summarize.py '"'"'--workdir=/mnt/shared/runs/a run'"'"' --multihost'

# To see the logs of all hosts:
#   gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=0 '--command=tail --lines=20 --follow=name '"'"'/mnt/shared/runs/a run/logs'"'"'/host-*.log'
# To stop it, so that it saves first:
#   gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=0 '--command=pkill -TERM --pidfile /tmp/pdl_jax.pid'
# To resume it on these machines:
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=tpu-vm --pod=v6 --zone=us-east5-a --share=10.0.0.2:/runs
# To resume it on new machines, if these were preempted:
#   gcloud compute tpus tpu-vm delete v6 --zone=us-east5-a --quiet
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=tpu-vm --pod=v6 --zone=us-east5-a --accelerator=v6e-16 --share=10.0.0.2:/runs --capacity=spot
# To delete the machines, which cost until then:
#   gcloud compute tpus tpu-vm delete v6 --zone=us-east5-a --quiet
