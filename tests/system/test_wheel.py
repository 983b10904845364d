"""The wheel: built from a copy of the checkout, installed into an empty environment, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

from ovlt.config.places import checkout, recipe_path, recipes_folder

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
PARTS = ("pyproject.toml", "setup.py", "CMakeLists.txt", "LICENSE", "README.md")
FOLDERS = ("csrc", "kernels", "ovlt", "recipes")
# The smallest world and model; the demo draws the one and makes the other before anything else.
TINY = [f"--synthetic.{name}_rows=8" for name in ("base", "sft", "grpo", "validation", "held_out")]
TINY += [f"--synthetic.{name}_rows=8" for name in ("level", "seed")]
TINY += ["--synthetic.level_validation_rows=4", "--synthetic.level_held_out_rows=4"]
TINY += ["--base.hidden=64", "--base.heads=2", "--base.kv_heads=1", "--base.layers=1"]
pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    """Return the environment without the checkout on Python's path."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def run(*argv: str | Path, cwd: Path) -> str:
    """Return the output of a program that must succeed."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")  # the build writes into its source folder
    for name in PARTS:
        shutil.copy2(ROOT / name, source)  # with its time: else the extension is built again
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    target = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", target, ".")
    run(*PIP, *build, cwd=source)
    (file,) = target.glob("ovlt-*.whl")
    return file


@pytest.fixture(scope="module")
def home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel alone, and sees the dependencies of this one."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    run(*PIP, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", packages, cwd=home).strip())
    # Python searches a path that a .pth file names, but reads no .pth file there: an editable ovlt
    # of this environment stays out of sight.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def test_the_wheel_holds_recipes_templates_and_the_licence(wheel: Path) -> None:
    names = {name.split("purelib/")[-1] for name in zipfile.ZipFile(wheel).namelist()}
    for folder, pattern in (("recipes", "*"), ("ovlt", "*.py"), ("ovlt", "*.html")):
        for path in (ROOT / folder).rglob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT / "ovlt" if folder == "ovlt" else ROOT)
                assert f"ovlt/{name}" in names, name
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench"))]


def test_the_installed_package_is_used_and_finds_its_recipes(home: Path, tmp_path: Path) -> None:
    code = """
import ovlt, ovlt_kernels
from ovlt.config.places import checkout, recipes_folder
from ovlt.run.provenance import commit
print(ovlt.__file__, ovlt_kernels.__file__, recipes_folder(), sep="\\n")
print(checkout(), commit())
"""
    *places, last = run(home / "bin" / "python", "-c", code, cwd=tmp_path).splitlines()
    assert all(Path(place).is_relative_to(home) for place in places), places
    assert last == "None unknown"


@pytest.mark.parametrize("argv", [["--help"], ["grpo", "--help"]], ids=" ".join)
def test_help_works_elsewhere(home: Path, tmp_path: Path, argv: list[str]) -> None:
    text = run(home / "bin" / "ovlt", *argv, cwd=tmp_path)
    assert "usage: " in text
    assert ("recipes/smoke.toml" in text) == (argv != ["--help"])


def test_a_shipped_recipe_is_planned_elsewhere(home: Path, tmp_path: Path) -> None:
    text = run(home / "bin" / "ovlt", "plan", "recipes/openvlthinker-v2.toml", cwd=tmp_path)
    assert "sizes: recipes/models/qwen2_5_vl_7b.json" in text


def test_the_demo_starts_elsewhere(home: Path, tmp_path: Path) -> None:
    """Up to the untrained base model; then the demo is stopped."""
    made = tmp_path / "runs" / "smoke" / "base" / "untrained.json"
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(home / "bin" / "ovlt"), "demo", *TINY],
            cwd=tmp_path, env=environment(), stdout=file, stderr=file,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not made.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        process.terminate()  # its own children end with it (ovlt/system/launch.py)
        process.wait(60)
    assert (tmp_path / "runs" / "smoke" / "data" / "world.json").is_file()
    assert (made.parent / "untrained" / "config.json").is_file()


def test_in_a_checkout_the_recipes_are_those_of_the_checkout() -> None:
    assert checkout() == ROOT
    assert recipes_folder() == ROOT / "recipes"


def test_a_recipe_of_the_current_folder_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("recipes/smoke.toml")
    assert recipe_path(name) == ROOT / name
    assert recipe_path(Path("recipes/none.toml")) == Path("recipes/none.toml")
    assert recipe_path(Path("smoke.toml")) == Path("smoke.toml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / name).write_text("")
    assert recipe_path(name) == name
