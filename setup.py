"""Builds the C++ extension (csrc/) with CMake; all metadata is in pyproject.toml.

The library is no Python module: it is loaded with ``torch.ops.load_library`` and speaks the
libtorch stable ABI, so one file serves every Python and every torch from 2.10 on. Where it cannot
be built (no torch, no compiler) the package installs without it, and
``ovlt_kernels.extension.WHY`` says so at run time; ``OVLT_REQUIRE_EXT=1`` makes that an error.
``python setup.py build_native`` builds in place. The CUDA kernels are built where torch has CUDA
and nvcc works; ``OVLT_CUDA=ON`` or ``OFF`` decides it instead, and builds anew.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
LIBRARY = ROOT / "kernels" / "ovlt_kernels" / "_C.so"
OLDEST_TORCH = (2, 10)  # the first with torch::stable::parallel_for; CMakeLists.txt targets its ABI


class NotBuilt(Exception):
    """Why there is no extension, as a sentence for the user."""


def torch_folder() -> Path:
    """Folder of the torch package, found without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise NotBuilt(
            "torch is not visible to the build: install torch first, "
            "then `pip install --no-build-isolation -e .`."
        )
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise NotBuilt(f"torch {version} is older than 2.10, the first whose stable ABI is used.")
    return Path(next(iter(spec.submodule_search_locations)))


def program(name: str) -> str | None:
    """A program on PATH, or one that pip put beside the interpreter."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


def up_to_date() -> bool:
    if not LIBRARY.exists():
        return False
    sources = [ROOT / "CMakeLists.txt", ROOT / "setup.py", *(ROOT / "csrc").iterdir()]
    return LIBRARY.stat().st_mtime > max(path.stat().st_mtime for path in sources)


def cmake(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
    if done.returncode:
        LIBRARY.unlink(missing_ok=True)  # one of other sources would fail later, and less clearly
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise NotBuilt(f"`{' '.join(arguments)}` failed:\n{tail}\n")


def build_library() -> None:
    """Compile csrc/ into LIBRARY; raises NotBuilt with the reason."""
    if not sys.platform.startswith("linux"):
        raise NotBuilt(f"the extension is written for Linux, not for {sys.platform}.")
    torch = torch_folder()
    cuda = os.environ.get("OVLT_CUDA")
    if cuda is None and up_to_date():
        return
    tool = program("cmake")
    if tool is None:
        raise NotBuilt("cmake is missing: `apt-get install cmake g++` or `pip install cmake`.")
    folder = ROOT / "build" / "native"
    shutil.rmtree(folder, ignore_errors=True)  # two seconds to build; no stale cache to explain
    configure = [tool, "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DOVLT_TORCH={torch}", f"-DOVLT_CUDA={cuda or 'AUTO'}"]
    if ninja := program("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    cmake(configure)
    cmake([tool, "--build", str(folder), "--parallel"])
    # Copied beside its place and renamed: a process that has the old library mapped keeps it.
    new = LIBRARY.with_suffix(".so.new")
    shutil.copyfile(folder / "_C.so", new)
    new.replace(LIBRARY)


class BuildNative(Command):
    """`build_native`, also a step of `build` and of an editable install."""

    description = "build the C++ extension in place"
    user_options = []  # noqa: RUF012 (setuptools reads a class attribute)
    editable_mode = False

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def get_source_files(self) -> list[str]:
        return ["CMakeLists.txt", *(f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir())]

    def get_outputs(self) -> list[str]:
        return []  # the library lies in the package: build_py copies it as package data

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def run(self) -> None:
        try:
            build_library()
        except (NotBuilt, OSError) as error:
            text = f"ovlt: the C++ extension is NOT built: {error}"
            if os.environ.get("OVLT_REQUIRE_EXT") == "1":
                raise SystemExit(text) from error
            print(f"{text} ovlt runs without it, with plain PyTorch instead.", file=sys.stderr)


class Build(build):
    # Before build_py, which copies the library. Not inside build_py: an editable install swallows
    # the errors of a customised build_py, and OVLT_REQUIRE_EXT=1 would do nothing.
    sub_commands = [("build_native", None), *build.sub_commands]  # noqa: RUF012


class Wheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False  # the library is only being built now

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform  # bound to a platform, to no Python version


setup(
    # kernels/ itself is no package (transformers looks for one of that name), its content is.
    packages=find_packages(include=["ovlt", "ovlt.*"]) + find_packages("kernels"),
    package_dir={"ovlt_kernels": "kernels/ovlt_kernels"},
    package_data={"ovlt": ["report/*"], "ovlt_kernels": ["_C.so"]},
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
)
