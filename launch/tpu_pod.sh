#!/usr/bin/env bash
# Trains on all hosts of a TPU slice: starts the same command on each of its workers. All settings are flags.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh --name=TPU --zone=ZONE [--project=PROJECT] [--dir=FOLDER] FLAGS OF jaxmtl train ...

Runs `jaxmtl train --coordinator=auto FLAGS` on all workers of a TPU VM slice through gcloud.
  --name     the slice, as `gcloud compute tpus tpu-vm list` shows it
  --zone     its zone
  --project  its project (default: gcloud's own setting)
  --dir      folder on the workers to start in (default: the home folder); if it holds .venv, that is used

jaxmtl with the extra [tpu] must be installed on the workers, and paths in the flags must be seen by all of them.

  launch/tpu_pod.sh --name=my-slice --zone=us-central2-b --dir=jaxmtl --gin_file=models/t5_1_1/large.gin \
    --gin_file=runs/train.gin --gin_file=mesh/pod.gin --gin.STORE=/mnt/data/store --gin.RUN_DIR=/mnt/data/first
TEXT
}

name="" zone="" project="" dir="."
flags=()
for word in "$@"; do
  case "$word" in
    -h | --help) usage && exit 0 ;;
    --name=*) name="${word#*=}" ;;
    --zone=*) zone="${word#*=}" ;;
    --project=*) project="${word#*=}" ;;
    --dir=*) dir="${word#*=}" ;;
    *) flags+=("$word") ;;
  esac
done
if [[ -z "$name" || -z "$zone" || ${#flags[@]} -eq 0 ]]; then
  usage >&2
  exit 2
fi

# The workers' shells read the command again, so each word is quoted once more.
printf -v quoted ' %q' "${flags[@]}"
printf -v folder '%q' "$dir"
command="cd $folder && PATH=\"\$PWD/.venv/bin:\$PATH\" jaxmtl train --coordinator=auto$quoted"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${project:+--project="$project"} --worker=all \
  --command="$command"
