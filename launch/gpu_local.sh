#!/usr/bin/env bash
# Trains on the GPUs of this machine. All settings are flags of `jaxmtl train`.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gpu_local.sh [--gpus=0,1,...] FLAGS OF jaxmtl train ...

Trains on the GPUs of this machine; --gpus says on which of them (default: all). Batches are split over them unless a
mesh file among the flags says otherwise.

  launch/gpu_local.sh --gpus=0 --gin_file=models/t5_1_1/small.gin --gin_file=runs/train.gin \
    --gin_file=mesh/gpu1.gin --gin.STORE=runs/store --gin.RUN_DIR=runs/first
TEXT
}

gpus=""
flags=()
for word in "$@"; do
  case "$word" in
    -h | --help) usage && exit 0 ;;
    --gpus=*) gpus="${word#--gpus=}" ;;
    *) flags+=("$word") ;;
  esac
done
if [[ ${#flags[@]} -eq 0 ]]; then
  usage >&2
  exit 2
fi
if [[ -n "$gpus" ]]; then
  export CUDA_VISIBLE_DEVICES="$gpus"
fi
exec jaxmtl train "${flags[@]}"
