#!/bin/bash
# start.sh HOST LOGS COMMAND...: runs a host's training, its output at the end of
# LOGS/host-<index>.log.
#
# HOST is an index, or tpu: this worker's, and the training outlives the session
# that began it; or gke: this pod's, and the training takes the script's place.
set -euo pipefail
host=$1 logs=$2
shift 2
cd "$(dirname "$0")/../../.."
case $host in
tpu)
  attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
  host=$(curl --silent --fail --header 'Metadata-Flavor: Google' \
    $attributes/agent-worker-number)
  ;;
# Each slice of several has a worker 0.
gke) host=${MEGASCALE_SLICE_ID:+$MEGASCALE_SLICE_ID-}${TPU_WORKER_ID:-0} stay=1 ;;
esac
mkdir -p "$logs"
log=$logs/host-$host.log
if test -n "${stay-}"; then
  exec "$@" > >(tee --append "$log") 2>&1
fi
# The training keeps the lock open, and with it for as long as it lives.
lock=${TMPDIR:-/tmp}/pdl_jax.lock
exec 9> "$lock"
flock --nonblock 9 || {
  echo "host $host trains already; stop that first" >&2
  exit 1
}
nohup setsid "$@" >> "$log" 2>&1 < /dev/null &
echo $! > "${TMPDIR:-/tmp}/pdl_jax.pid"
# What is wrong at once should be seen at once.
sleep 5
kill -0 $! 2> /dev/null || {
  code=0
  wait $! || code=$?
  tail --lines=1 "$log" >&2
  exit $code
}
echo "host $host: process $!, $log"
