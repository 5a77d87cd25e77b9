# 1/4 pack the code of the last commit
git archive --prefix=pdl_jax-0123456789ab/ --add-virtual-file=pdl_jax-0123456789ab/COMMIT:0123456789abcdef0123456789abcdef01234567 --output=/tmp/pdl_jax-0123456789ab.tar.gz 0123456789abcdef0123456789abcdef01234567 pdl_jax configs launch.py requirements.txt requirements-nodeps.txt

# 2/4 ship it to all hosts
gcloud compute tpus tpu-vm scp /tmp/pdl_jax-0123456789ab.tar.gz v6: --zone=us-east5-a --quiet --worker=all

# 3/4 unpack and install
gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=all '--command=tar -xzf pdl_jax-0123456789ab.tar.gz && cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/setup.sh tpu'

# 4/4 start the training
gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=all '--command=cd pdl_jax-0123456789ab && bash pdl_jax/cluster/pods/start.sh tpu '"'"'/mnt/shared/runs/a run/logs'"'"' .venv/bin/python launch.py --config=configs/summarize.py '"'"'--workdir=/mnt/shared/runs/a run'"'"' --multihost'

# To see the logs of all hosts:
#   gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=0 '--command=tail --lines=20 --follow=name '"'"'/mnt/shared/runs/a run/logs'"'"'/host-*.log'
# To stop it, so that it saves first:
#   gcloud compute tpus tpu-vm ssh v6 --zone=us-east5-a --quiet --worker=0 '--command=pkill -TERM --pidfile /tmp/pdl_jax.pid'
# To resume it on these machines:
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=tpu-vm --pod=v6 --zone=us-east5-a
# To delete the machines, which cost until then:
#   gcloud compute tpus tpu-vm delete v6 --zone=us-east5-a --quiet
