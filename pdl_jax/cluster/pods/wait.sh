#!/bin/bash
# wait.sh NAME ZONE: until a queued resource has its machines, or will have none.
set -euo pipefail
before=
while true; do
  state=$(gcloud compute tpus queued-resources describe "$1" --zone="$2" \
    '--format=value(state.state)')
  test "$state" = "$before" || echo "$(date +%T) $state"
  before=$state
  case $state in
  ACTIVE) exit ;;
  FAILED | SUSPENDING | SUSPENDED | DELETING) exit 1 ;;
  esac
  sleep 60
done
