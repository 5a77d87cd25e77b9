#!/bin/bash
# mount.sh SHARE FOLDER: mounts IP:/EXPORT by NFS or gs://BUCKET by Cloud Storage
# FUSE. A second call does nothing.
set -euo pipefail
share=$1 folder=$2
mountpoint --quiet "$folder" && exit
sudo mkdir -p "$folder"
case $share in
gs://*)
  command -v gcsfuse > /dev/null || {
    echo "gcsfuse is not installed on $(hostname)" >&2
    exit 1
  }
  sudo chown "$USER" "$folder"
  # No cache of names: every host has to see what another has just written.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "${share#gs://}" "$folder"
  ;;
*)
  command -v mount.nfs > /dev/null || {
    sudo apt-get update --quiet
    sudo apt-get install --quiet --yes nfs-common
  }
  sudo mount -t nfs "$share" "$folder"
  test -w "$folder" || sudo chmod 1777 "$folder"
  ;;
esac
