#!/usr/bin/env bash
# The whole GPU table with one command, on a machine that has a GPU, torch >= 2.11 and the packages of
# requirements/common.txt; ovlt need not be installed there:
#
#     bench/on_gpu.sh OUT [pytest options, for instance -k "grpo and 7B"]
#
# Tests every kernel on the GPU first, then measures. OUT gets the logs, the dated JSON, the table
# and the plots. Peers that are not installed have no lines; OVLT_PEERS names a folder of them.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: bench/on_gpu.sh OUT [pytest options]}")
shift
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
  { echo "torch sees no CUDA device: this script is for a machine that has one" >&2; exit 1; }
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv \
  >"$out/gpu.csv" || true
OVLT_REQUIRE_EXT=1 "$python" setup.py -q build_native

"$python" -m pytest -q tests/kernels tests/model/test_attention.py 2>&1 | tee "$out/tests.log"
"$python" -m pytest -q bench --benchmark-only --benchmark-json="$out/$(date -u +%F)-gpu.json" "$@" \
  2>&1 | tee "$out/bench.log"
"$python" bench/table.py "$out"/*-gpu.json
