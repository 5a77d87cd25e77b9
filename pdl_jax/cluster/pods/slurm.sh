# A batch job, job.sbatch; everything else happens on the login node.
## pack the code of the last commit
${PACK}
## unpack it
tar -xzf ${PACKED} --one-top-level=${PODS}
## install
bash ${PODS}/${CODE}/pdl_jax/cluster/pods/setup.sh cuda12
## submit the job
sbatch ${LOGS}/job.sbatch
## To see the logs of all hosts
bash -c 'tail --lines=20 --follow=name ${LOGS}/host-*.log'
## To stop it, with the KillWait of the cluster to save
scancel --name=${NAME}
## To resume it
${RESUME}
