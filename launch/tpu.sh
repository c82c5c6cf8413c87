#!/usr/bin/env bash
# A Cloud TPU slice: makes a v5e of 16 chips on four hosts, installs the program, trains, and fetches the run.
#     launch/tpu.sh NAME ZONE --preset resnet18 --batch-size 1024
# Never run: it takes an account and a quota. Its syntax is checked by `bash -n`. The same command again goes on.
# The slice is billed until `gcloud compute tpus tpu-vm delete NAME --zone ZONE`.
set -euo pipefail

name=$1 zone=$2
shift 2
flags=$(printf '%q ' "$@")
repository=${REPOSITORY:?the address of a git repository with this program, which the hosts can clone}

on() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker="$1" --command="$2"; }

gcloud compute tpus tpu-vm describe "$name" --zone "$zone" > /dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$name" --zone "$zone" --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite

on all "[ -d cifar-flax ] || { git clone '$repository' cifar-flax && python3 -m venv venv && venv/bin/pip install -q './cifar-flax[tpu]'; }"

# Worker 0 owns the run directory; whether it holds a run is asked once, since all must be given the same flags.
resume=$(on 0 'if [ -e run/config.json ]; then echo --resume; fi')
# The same command on all workers at once: JAX learns from the slice who they are.
on all "venv/bin/cifar-flax train --distributed --out run $resume $flags"

gcloud compute tpus tpu-vm scp --recurse "$name:run" . --zone "$zone" --worker=0
