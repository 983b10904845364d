#!/usr/bin/env bash
# Programs from the system: requirements/system.sh build|browser. Installs what is missing where we
# are root and apt-get is there, says how otherwise, and never fails: without a compiler ovlt runs on
# plain PyTorch, and without a browser the tests that need one fail with the same sentence.
set -uo pipefail

missing=()
need() { # need PACKAGE PROGRAM...: any one of the programs will do
  local package=$1 program
  shift
  for program in "$@"; do command -v "$program" >/dev/null && return; done
  missing+=("$package")
}

case ${1:-} in
  build) need g++ g++ c++ clang++; need cmake cmake; need make make ninja ;;
  browser) need chromium chromium chromium-browser google-chrome google-chrome-stable ;;
  *) echo "usage: $0 build|browser" >&2; exit 2 ;;
esac
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "== installing ${missing[*]} with apt-get" >&2
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >/dev/null && exit 0
fi
case $1 in
  build) without="the C++ extension is not built and plain PyTorch is used" ;;
  browser) without="the tests that open the report page fail" ;;
esac
echo "Missing: ${missing[*]}. Without, $without. To install: apt-get install ${missing[*]}" >&2
exit 0
