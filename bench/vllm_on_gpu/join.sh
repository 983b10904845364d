#!/usr/bin/env bash
# join.sh [TARGET=/opt/kit]: on the GPU machine, from the project's root. Checks the sum of .vllm/kit.tar.xz,
# unpacks it into TARGET, and writes TARGET/env.sh, which every later step reads. A second kit
# (KIT=.vllm-whole) is unpacked over the first.
set -euo pipefail
cd "$(dirname "$0")/../.."
kit=$(realpath "${KIT:-.vllm}")
target=${1:-/opt/kit}
python=${PYTHON:-python3}
began=$(date +%s)
(cd "$kit" && sha256sum --check --quiet sum) || { echo "the sum of $kit is wrong: send it again" >&2; exit 1; }
mkdir -p "$target"
# Python's own lzma, since the machine may lack xz; or xz. The archive is ours.
if "$python" -c 'import lzma' 2>/dev/null; then
  "$python" - "$kit/kit.tar.xz" "$target" <<'END'
import sys
import tarfile

with tarfile.open(sys.argv[1], mode="r|xz") as archive:
    archive.extractall(sys.argv[2], filter="fully_trusted")
END
else
  xz --decompress --stdout "$kit/kit.tar.xz" | tar -xf - -C "$target"
fi
unset PYTHONDONTWRITEBYTECODE
"$python" -m compileall -q -j 0 "$target/vllm" "$target/site" >/dev/null 2>&1 || true
# Some processes get a PYTHONPATH of their own: what Python itself knows reaches those too.
purelib=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf 'import sys; sys.path[1:1] = ["%s/vllm", "%s/site"]\n' "$target" "$target" >"$purelib/ovlt_kit.pth" ||
  echo "no ovlt_kit.pth could be written: only PYTHONPATH finds the kit"
cat >"$target/env.sh" <<END
export PYTHONPATH=$target/vllm:$target/site:$PWD:$PWD/kernels:$PWD/tests
export VLLM_LOGGING_LEVEL=\${KIT_LOG:-INFO} VLLM_CACHE_ROOT=$target/cache VLLM_DO_NOT_TRACK=1
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
unset PYTHONDONTWRITEBYTECODE
END
. "$target/env.sh"
"$python" - <<'END'
import importlib.metadata as metadata
import sys

print("python", sys.version.split()[0], sys.executable)
for name in ("vllm", "torch", "triton", "transformers", "tokenizers", "numpy", "numba", "pydantic",
             "typing_extensions", "protobuf", "pillow"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "MISSING")
END
echo "joined in $(($(date +%s) - began)) s"
