# 1/3 pack the code of the last commit
git archive --prefix=pdl_jax-0123456789ab/ --add-virtual-file=pdl_jax-0123456789ab/COMMIT:0123456789abcdef0123456789abcdef01234567 --output=/tmp/pdl_jax-0123456789ab.tar.gz 0123456789abcdef0123456789abcdef01234567 pdl_jax configs launch.py requirements.txt requirements-nodeps.txt

# 2/3 unpack it for the image
tar -xzf /tmp/pdl_jax-0123456789ab.tar.gz --directory=/tmp

# 3/3 submit the workload
xpk workload create --workload=first --cluster=my-cluster --zone=us-west4-a --tpu-type=v5litepod-16 --storage=my-storage --base-docker-image=python:3.12 --script-dir=/tmp/pdl_jax-0123456789ab --max-restarts=10 --restart-on-exit-codes=4,75 --termination-grace-period-seconds=120 '--command=bash pdl_jax/cluster/pods/setup.sh tpu && exec bash pdl_jax/cluster/pods/start.sh gke '"'"'/mnt/shared/runs/a run/logs'"'"' .venv/bin/python launch.py --config=configs/summarize.py '"'"'--workdir=/mnt/shared/runs/a run'"'"' --multihost'

# To see the logs of all hosts:
#   kubectl logs --follow --prefix --max-log-requests=256 --selector=jobset.sigs.k8s.io/jobset-name=first
# To stop it, with 120 s to save:
#   xpk workload delete --workload=first --cluster=my-cluster --zone=us-west4-a --force
# To resume it:
#   xpk workload delete --workload=first --cluster=my-cluster --zone=us-west4-a --force
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=xpk --pod=first --zone=us-west4-a --accelerator=v5litepod-16 --share=my-storage --cluster=my-cluster
