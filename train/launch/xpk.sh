#!/usr/bin/env bash
# A run on GKE through XPK (https://github.com/AI-Hypercomputer/xpk), on one slice or several.
#
#   export PROJECT=my-project ZONE=us-west4-a CLUSTER=florence IMAGE=gcr.io/my-project/florence
#   TPU=v5litepod-256 SLICES=2 train/launch/xpk.sh pod-run --config train/recipes/pretrain.py \
#       --directory /runs/pretrain --mesh dcn_data=2,data=16,fsdp=16
#
# The first word names the workload. /runs must be a volume of the cluster that all pods mount
# (`xpk storage attach`). --max-restarts starts the run again where it stopped.
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${IMAGE:?}"
workload=${1:?the workload needs a name}
shift

xpk workload create \
  --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
  --workload="$workload" --docker-image="$IMAGE" \
  --tpu-type="${TPU:-v5litepod-16}" --num-slices="${SLICES:-1}" \
  --max-restarts="${RESTARTS:-20}" --termination-grace-period-seconds=120 \
  --command="exec python -m train.main $(printf '%q ' "$@")--distributed"
