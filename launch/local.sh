#!/usr/bin/env bash
# Two processes on this machine, one CPU device each: a trial of training in several processes.
#     launch/local.sh --preset smoke --out runs/two
# Every word is a flag of train.py; with --resume it goes on. Run with jax 0.10.2 on two CPU cores on 2026-11-25:
# two epochs of the sample, and a SIGTERM and --resume.
set -uo pipefail

port=${PORT:-29500}                                      # any free port
export JAX_NUM_CPU_DEVICES=1 JAX_PLATFORMS=cpu
common=(--coordinator "127.0.0.1:$port" --num-processes 2)

python train.py "${common[@]}" --process-id 1 "$@" &     # silent: process 0 alone prints and writes
python train.py "${common[@]}" --process-id 0 "$@" &
trap 'kill -TERM %1 %2 2> /dev/null; stopped=1' TERM     # both save a checkpoint and end with 143
wait %2
code=$?
[[ ${stopped:-} ]] && { wait %2; code=$?; }              # the first wait ended at the signal
wait %1
exit "$code"                                             # 75: a process was lost; start again with --resume
