#!/usr/bin/env bash
# fetch.sh FOLDER all|ovlt: wheels of packages.txt for Python 3.12 on x86-64 Linux, from the package index;
# `ovlt`: only those before the line "# vllm".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
platforms=()
for n in 39 34 31 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
mapfile -t names < <(sed "$([ "$2" = all ] || echo '/^# vllm/,$d;')/^#/d" "$here/packages.txt")
[ "$2" != all ] || names+=("${@:3}")
mkdir -p "$1"
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp "${platforms[@]}" --dest "$1" "${names[@]}"
