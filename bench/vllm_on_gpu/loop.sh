#!/usr/bin/env bash
# loop.sh DEVICE BACKEND [ovlt grpo's options]: GRPO from start to end on a tiny model, one rank:
# sampling, grading, packing, updates, weight sync with its proofs, validation, checkpoint, export.
# DEVICE cpu or cuda, BACKEND transformers or vllm. Prints its metrics, and fails if a step is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
device=$1 backend=$2
shift 2
python=${PYTHON:-python3}
home=$(mktemp -d "${TMPDIR:-/tmp}/ovlt-loop-XXXXXX")
trap 'rm -rf "$home"' EXIT
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" OVLT_DEVICE=$device
export HF_HUB_OFFLINE=1
recipe=$("$python" bench/vllm_on_gpu/world.py "$home" "$device" "$backend")
"$python" -m ovlt.grpo "$recipe" "$@" # one rank needs no torchrun
lines=$(find "$home/runs" -name metrics.jsonl)
cat "$lines"
[ "$(wc -l <"$lines")" = "$(sed -n 's/^steps = //p' "$recipe")" ]
