#!/usr/bin/env bash
# make_kit.sh [ROOT]: vLLM for CUDA 13 and what ovlt and vLLM need beside a bare GPU machine's packages, in
# ROOT/.vllm: one piece of about 45 MiB. Run it where you work: x86-64 Linux with pip, readelf
# (binutils), tar, xz and a package index; it fetches 270 MB and takes 2 to 4 minutes on one core.
#
# Left out is what Qwen2.5-VL in bfloat16 on Hopper does not use. WHOLE=1 also packs the library without
# slim.py's work, in ROOT/.vllm-whole (README.md says when). git ignores all of these.
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
root=$(cd "${1:-$kit/../..}" && pwd)
cache=$root/.vllm-cache out=$root/.vllm
python=${PYTHON:-python3}
VLLM=0.25.1 # the newest but one line that is built for torch 2.11.0; sizes and tests are of this one

echo "== fetching vllm $VLLM and $(grep -c '^[^#]' "$kit/packages.txt") packages"
[ -f "$(ls "$cache"/vllm-"$VLLM"-*.whl 2>/dev/null)" ] || {
  mkdir -p "$cache"
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --abi abi3 --abi cp312 --platform manylinux_2_28_x86_64 --platform manylinux_2_31_x86_64 \
    --platform manylinux_2_35_x86_64 --platform manylinux1_x86_64 --dest "$cache" "vllm==$VLLM"
}
bash "$kit/fetch.sh" "$cache/wheels" all

echo "== trimming"
rm -rf "$cache/tree"
mkdir -p "$cache/tree/vllm" "$cache/tree/site"
unpack() { "$python" -m zipfile -e "$1" "$2"; }
unpack "$cache"/vllm-"$VLLM"-*.whl "$cache/tree/vllm"
for wheel in "$cache"/wheels/*.whl; do unpack "$wheel" "$cache/tree/site"; done
library=vllm/_C_stable_libtorch.abi3.so
cp "$cache/tree/vllm/$library" "$cache/whole.so"
(
  cd "$cache/tree/vllm"
  # FlashAttention 2 (FA3 is Hopper's), experts, MLA, FP4, Blackwell, the Rust server, its web page.
  rm -rf vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so vllm/_moe_C_stable_libtorch.abi3.so \
    vllm/_flashmla*.so vllm/_qutlass_C.abi3.so vllm/_rust_tool_parser.abi3.so vllm/fs_io_C.abi3.so \
    vllm/vllm-rs vllm/third_party/deep_gemm vllm/third_party/fmha_sm100 \
    vllm/entrypoints/serve/instrumentator/static vllm/distributed/kv_transfer/*.jpg
)
"$python" "$kit/slim.py" "$cache/whole.so" "$cache/tree/vllm/$library" 90
find "$cache/tree/site" -name tests -type d -prune -exec rm -rf {} +

pack() { # pack FOLDER_WITH_FILES TARGET_FOLDER: the piece, and its sum
  rm -rf "$2" && mkdir -p "$2"
  tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . |
    xz -T1 "${XZ_LEVEL:--6}" --stdout >"$2/kit.tar.xz"
  (cd "$2" && sha256sum kit.tar.xz >sum)
}
echo "== packing (a minute or two on one core)"
pack "$cache/tree" "$out"
if [ -n "${WHOLE:-}" ]; then
  rm -rf "$cache/one" && mkdir -p "$cache/one/vllm/vllm"
  cp "$cache/whole.so" "$cache/one/vllm/$library"
  pack "$cache/one" "$root/.vllm-whole"
fi
rm -rf "$cache/one" "$cache/whole.so" # what was fetched stays, and the trimmed tree, for try.sh
tree=$(cd "$root" && { git ls-files -z --cached --others --exclude-standard; } | xargs -0 du -cb 2>/dev/null |
  awk '/total$/ {sum += $1} END {print sum}')
ls -l "$out" | awk 'NR > 1 {printf "%10.2f MiB  %s\n", $5 / 1048576, $NF}'
echo "the working tree beside it: $((tree / 1024 / 1024 + 1)) MiB (a call may carry 64 MiB in all)"
