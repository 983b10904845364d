#!/usr/bin/env bash
# Programs of the system: requirements/system.sh build|browser
# Installs what is missing if we are root and apt-get is there, else says what to install. It never
# fails: without a compiler ovlt runs on plain PyTorch, and without a browser the tests that need one
# fail with the same sentence.
set -uo pipefail

missing=()
need() { # need PACKAGE PROGRAM...: any one of the programs will do
  local package=$1 program
  shift
  for program in "$@"; do command -v "$program" >/dev/null && return; done
  missing+=("$package")
}

WAIT_S=600 # a machine that has just started may upgrade itself for minutes
apt() { # apt-get that waits while another one holds a lock
  local errors waiting=''
  # The option serves dpkg's lock alone: without the loop, a lock of the package lists or of the
  # downloads is an error at once.
  until errors=$(LC_ALL=C apt-get -qq -o DPkg::Lock::Timeout=$WAIT_S "$@" 2>&1 >/dev/null); do
    if [[ $errors != *" get lock "* ]] || [ "$SECONDS" -ge $WAIT_S ]; then
      echo "$errors" >&2
      return 1
    fi
    [ -n "$waiting" ] || echo "== waiting for another apt-get to end" >&2
    waiting=1
    sleep 5
  done
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
  apt update && apt install -y --no-install-recommends "${missing[@]}" && exit 0
fi
case $1 in
  build) without="the C++ extension is not built and plain PyTorch is used" ;;
  browser) without="the tests that open the report page fail" ;;
esac
echo "Missing: ${missing[*]}. Without, $without. To install: apt-get install ${missing[*]}" >&2
exit 0
