#!/usr/bin/env bash
# A run on a Cloud TPU VM slice. Every command reaches all of its workers.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=florence ACCELERATOR=v5litepod-16
#   export BUCKET=gs://my-bucket/data RUNS=10.0.0.2:/runs
#   train/launch/tpu_vm.sh create && train/launch/tpu_vm.sh install
#   train/launch/tpu_vm.sh run --config train/recipes/full.py \
#       --data.directory /data --directory /runs/full --mesh data=2,fsdp=8
#   train/launch/tpu_vm.sh status; train/launch/tpu_vm.sh stop; train/launch/tpu_vm.sh delete
#
# Called from the checkout, whose files as they are go to the workers. BUCKET is copied to
# /data of each. RUNS is an NFS export (Filestore) that all mount: a run is one directory that every
# process sees.
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${NAME:?}"
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
where=(--project="$PROJECT" --zone="$ZONE")

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --version="$VERSION"
    ;;
  install)
    : "${BUCKET:?}" "${RUNS:?}"
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    tar --exclude=__pycache__ -czf "$archive" pyproject.toml README.md LICENSE florence_jax convert train
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:florence-jax.tar.gz" "${where[@]}" --worker=all
    on_all "set -e
      sudo apt-get -qq install -y nfs-common python3.11-venv
      sudo mkdir -p /runs /data && sudo chown \$USER /data
      mountpoint -q /runs || sudo mount $RUNS /runs
      mkdir -p florence-jax && tar -xzf florence-jax.tar.gz -C florence-jax
      python3.11 -m venv venv && venv/bin/pip install --quiet -e 'florence-jax[train,tpu]'
      gcloud storage rsync --recursive $BUCKET /data"
    ;;
  run)
    shift
    # A session of its own: the run survives a lost connection, and SIGTERM reaches Python alone.
    on_all "cd florence-jax && setsid nohup ../venv/bin/python -m train.main $(printf '%q ' "$@") \
      --distributed > ../train.log 2>&1 < /dev/null & echo \$! > train.pid"
    ;;
  status)
    on_all "tail -n 3 train.log; test -e /proc/\$(cat train.pid) && echo running || echo ended"
    ;;
  stop)
    # Saves and ends; `run` with the same words goes on.
    on_all "kill -TERM \$(cat train.pid)"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
    ;;
  *)
    sed -n '2,14p' "$0"
    exit 2
    ;;
esac
