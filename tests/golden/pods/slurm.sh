# Written first: /mnt/shared/runs/a run/logs/job.sbatch
mkdir -p '/mnt/shared/runs/a run/logs'
cat > '/mnt/shared/runs/a run/logs/job.sbatch' <<'END_OF_FILE'
#!/bin/bash
#SBATCH --job-name=first
#SBATCH --nodes=2
#SBATCH --gpus-per-node=h100:8
#SBATCH --ntasks-per-node=8
#SBATCH --output='/mnt/shared/runs/a run/logs/slurm.log'
#SBATCH --open-mode=append
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --signal=TERM@120
cd /.cache/pods/pdl_jax-0123456789ab || exit
# Each task sees all GPUs of its node; JAX takes the one of its local number.
srun --label --open-mode=append \
  --output='/mnt/shared/runs/a run/logs/host-%n.log' \
  .venv/bin/python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --multihost
code=$?
if test $code = 75; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
END_OF_FILE

# 1/4 pack the code of the last commit
git archive --prefix=pdl_jax-0123456789ab/ --add-virtual-file=pdl_jax-0123456789ab/COMMIT:0123456789abcdef0123456789abcdef01234567 --output=/tmp/pdl_jax-0123456789ab.tar.gz 0123456789abcdef0123456789abcdef01234567 pdl_jax configs launch.py requirements.txt requirements-nodeps.txt

# 2/4 unpack it
tar -xzf /tmp/pdl_jax-0123456789ab.tar.gz --one-top-level=/.cache/pods

# 3/4 install
bash /.cache/pods/pdl_jax-0123456789ab/pdl_jax/cluster/pods/setup.sh cuda12

# 4/4 submit the job
sbatch '/mnt/shared/runs/a run/logs/job.sbatch'

# To see the logs of all hosts:
#   bash -c 'tail --lines=20 --follow=name '"'"'/mnt/shared/runs/a run/logs'"'"'/host-*.log'
# To stop it, with the KillWait of the cluster to save:
#   scancel --name=first
# To resume it:
#   python launch.py --config=configs/summarize.py '--workdir=/mnt/shared/runs/a run' --pod_kind=slurm --pod=first --accelerator=h100:8 --hosts=2
