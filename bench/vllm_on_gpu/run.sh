#!/usr/bin/env bash
# run.sh PART...: on the GPU machine, from the project's root; README.md says which part in which call.
#   measure  join the kit, then bench/on_gpu.sh: kernels, training step, checks
#   engine   vLLM's libraries, the engine without and with CUDA graphs, GRPO with it, the decoding speed
#   v1       the engine with model runner V1
# Each step has its own limit and a failure ends nothing. Results go to $OUT, at most eight files; a table
# comes last.
set -uo pipefail
cd "$(dirname "$0")/../.."
here=bench/vllm_on_gpu
target=${KIT_TARGET:-/opt/kit}
python=${PYTHON:-python3}
export OUT=${OUT:-/tmp/kit-out}
device=${KIT_DEVICE:-cuda}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$OUT"
SECONDS=0
table=()

step() { # step NAME LIMIT_S COMMAND...: its log is added to $OUT/vllm.log; the telling lines are shown
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"/tmp/kit-$name.log" 2>&1
  status=$?
  table+=("$(printf '%-14s rc %-4s %4d s' "$name" "$status" $((SECONDS - began)))")
  { echo "==== $name"; cut -c1-500 "/tmp/kit-$name.log"; } >>"$OUT/vllm.log"
  echo "---- $name: rc $status"
  grep -hE '^(PASS|FAIL|SPEED|\{"step")|passed|failed|Error' "/tmp/kit-$name.log" | tail -n 30 | cut -c1-400
  [ $status = 0 ] || tail -n 25 "/tmp/kit-$name.log" | cut -c1-300
  return 0
}
loop() { # loop NAME LIMIT_S OPTIONS...: GRPO with vLLM; its metrics are kept
  step "$1" "$2" bash $here/loop.sh "$device" vllm "${@:3}"
  sed -n "s/^{\"step\"/{\"loop\": \"$1\", \"step\"/p" "/tmp/kit-$1.log" >>"$OUT/loops.jsonl"
}

for part in "$@"; do
  case $part in
    measure)
      if [ -d .vllm ]; then
        step join 90 bash $here/join.sh "$target"
        tail -15 /tmp/kit-join.log
        . "$target/env.sh"
      fi
      NO_ENGINE=1 bash bench/on_gpu.sh "$OUT"
      ;;
    engine)
      [ "$device" != cuda ] || . "$target/env.sh"
      [ "$device" != cuda ] || step libraries 60 "$python" $here/engine.py "$OUT/libraries.json" libraries
      step engine-eager 90 "$python" $here/engine.py "$OUT/engine-eager.json" --eager
      step engine-graphs 120 "$python" $here/engine.py "$OUT/engine-graphs.json"
      loop grpo 90
      loop grpo-no-liger 60 --model.liger=off
      LOOP_SIZE=half loop grpo-half 120
      [ "$device" != cuda ] || step speed 120 "$python" $here/speed.py "$OUT/speed.json"
      ;;
    v1)
      . "$target/env.sh"
      VLLM_USE_V2_MODEL_RUNNER=0 step engine-v1 75 "$python" $here/engine.py "$OUT/engine-v1.json" --eager
      ;;
    *) echo "no part '$part': measure, engine or v1" >&2 && exit 2 ;;
  esac
done
echo "==== ${*}: $SECONDS s"
printf '%s\n' ${table[@]+"${table[@]}"}
