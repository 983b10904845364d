#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in at most eight minutes, with what the machine has:
#
#     bench/on_gpu.sh [--dry] [OUT]        OUT: $OUT, else build/on_gpu
#
# Sections in the order of their value. Each has a limit, and its failure or its limit ends no other; what
# it finds is written at once. Ends with a short table, and with at most eight files in OUT:
#
#     DATE-gpu.json   every figure, with date, commit, versions, clocks
#     table.md        its tables: `python bench/table.py OUT/DATE-gpu.json --publish gpu` puts them into the docs
#     trace.json.gz   one training step, for https://ui.perfetto.dev
#     log.txt         what every section printed
#
# It fetches nothing. Wheels that the machine lacks are taken from WHEELS (.whl; bench/vllm_on_gpu/wheels.sh
# fills it). vLLM's sections run if vLLM can be imported (bench/vllm_on_gpu). OVLT_COMMIT names the commit
# if the sources come without git. SECONDS_IN_ALL (470) is the limit of all sections together.
#
# --dry: the same sections in a small size on a CPU; a script that never ran does not work.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=
[ "${1:-}" != --dry ] || { dry=1; shift; }
out=$(realpath -m "${1:-${OUT:-build/on_gpu}}")
python=${PYTHON:-python3}
limit_all=${SECONDS_IN_ALL:-470}
work=$out/parts
rm -rf "$work" "$out"/*-[cg]pu.json "$out"/{log.txt,table.md,trace.json.gz} # of an earlier run
mkdir -p "$work"
SECONDS=0
site=${TMPDIR:-/tmp}/ovlt-site-$UID

if [ -d "${WHEELS:-.whl}" ]; then # before PYTHONPATH: pip is not to see ovlt
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
    "${WHEELS:-.whl}"/*.whl >>"$out/log.txt" 2>&1
  PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OVLT_BENCH_LINES=$work/kernels.jsonl OVLT_BENCH_SECONDS=${OVLT_BENCH_SECONDS:-0.5}
export HF_HUB_OFFLINE=1 PATH=$PATH:/usr/local/cuda/bin
[ -n "$dry" ] || "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
  echo "torch sees no CUDA device: on a CPU, bench/on_gpu.sh --dry tries the script" >&2
  exit 2
}
if [ -n "$dry" ]; then
  export CUDA_VISIBLE_DEVICES= OVLT_DEVICE=cpu OVLT_BENCH_SECONDS=0.02
  limit_all=1200 # a busy machine is no failure
fi

# section NAME LIMIT COMMAND...: boxed, logged, never fatal; its status and seconds go to sections.tsv.
section() {
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  local left=$((limit_all - SECONDS))
  [ "$limit" -lt "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    printf '%s\t%s\t0\n' "$name" 75 >>"$work/sections.tsv" # no time was left
    return 0
  fi
  printf '\n==== %s\n' "$name" >>"$out/log.txt"
  timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1
  status=$?
  cut -c1-400 "$work/$name.log" | tail -n 400 >>"$out/log.txt"
  rm -f "$work/$name.log"
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" >>"$work/sections.tsv"
  printf '%-12s rc %-3s %3d s\n' "$name" "$status" "$((SECONDS - began))"
}
bench() { # bench NAME LIMIT FILES -k WORDS: kernels against their peers; each line is kept at once
  section "$1" "$2" "$python" -m pytest -q -p no:cacheprovider --benchmark-only "${@:3}"
}
tests() { section tests "$1" "$python" -m pytest -q -p no:cacheprovider --maxfail=20 -rf "${@:2}"; }
# The table is made even if this script is ended: what was measured is not to be lost.
finish() {
  trap - EXIT
  "$python" bench/gather.py "$work" >"$work/short.txt" 2>&1
  mv "$work"/*-[cg]pu.json "$out/" 2>/dev/null
  cat "$work/short.txt" | tee -a "$out/log.txt"
  "$python" bench/table.py "$out"/*-[cg]pu.json >"$out/table.md" 2>>"$out/log.txt"
  rm -f "$out"/*-[cg]pu.md "$out"/*-[cg]pu.svg
  rm -rf "$work"
  echo "==== $SECONDS s; $out: $(ls "$out" | tr '\n' ' ')"
}
trap finish EXIT
trap 'exit 143' TERM INT

if [ -n "$dry" ]; then
  section ceilings 300 "$python" bench/ceilings.py "$work/ceilings.json" --small
  tests 300 tests/kernels/test_head_traps.py -k "test_sizes_at_the_edges_of_blocks and cpu and 127"
  section step 300 "$python" bench/step.py "$work/step.json" --cases dry --rounds 1 \
    --ceilings "$work/ceilings.json" --trace "$out/trace.json.gz"
  bench kernels 300 bench/test_head.py bench/test_logp.py \
    -k "smoke and bf16 and (grpo and not entropy or row_logp) and (ovlt or floor or eager)"
  section checks 300 "$python" bench/gpu_checks.py "$work/checks.json"
  section loop 300 bash bench/vllm_on_gpu/loop.sh cpu transformers
else
  # The extension by all cores in the background, while the ceilings are measured and Triton's tests run.
  (OVLT_REQUIRE_EXT=1 TORCH_CUDA_ARCH_LIST=9.0a timeout 150 "$python" setup.py -q build_native \
    >"$work/build.txt" 2>&1) &
  build=$!
  section ceilings 30 "$python" bench/ceilings.py "$work/ceilings.json"
  section step 130 "$python" bench/step.py "$work/step.json" --cases base --seconds 80 \
    --ceilings "$work/ceilings.json" --trace "$out/trace.json.gz"
  wait "$build" || { echo "the extension was not built:"; tail -5 "$work/build.txt"; }
  cat "$work/build.txt" >>"$out/log.txt" 2>/dev/null
  rm -f "$work/build.txt"
  # Without what runs in Triton's interpreter: it fails with numpy >= 2.4, and the GPU runs the same.
  tests 75 tests/kernels tests/model/test_attention.py tests/model/test_liger.py -n 6 \
    --ignore tests/kernels/test_row_logp_triton.py -k "not (liger and cpu)"
  bench heads 90 bench/test_head.py -k "(grpo or sft) and not entropy and not ovlt_logp and \
    (ovlt or liger or floor or eager)"
  section checks 60 "$python" bench/gpu_checks.py "$work/checks.json"
  section loop 45 bash bench/vllm_on_gpu/loop.sh cuda transformers
  if [ -z "${NO_ENGINE:-}" ] && "$python" -c 'import vllm' 2>/dev/null; then
    section engine 90 "$python" bench/vllm_on_gpu/engine.py "$work/engine.json"
  fi
  section variants 70 "$python" bench/step.py "$work/variants.json" --cases variants --rounds 2 \
    --seconds 55 --ceilings "$work/ceilings.json"
  bench rows 45 bench/test_logp.py -k "bf16 and not trl and not compiled"
  bench attention 45 bench/test_attention.py -k "bf16 and not loop and not smoke"
  section sanitizer 60 env OVLT_ROW_KERNEL=cuda compute-sanitizer --error-exitcode 9 \
    "$python" bench/gpu_checks.py "$work/sanitizer.json" rows
fi
