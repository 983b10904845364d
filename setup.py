"""Build the C++ extension (csrc/) with CMake, and put the recipes into a wheel.

All metadata is in pyproject.toml. The library is no Python module: ``torch.ops.load_library`` loads
it, and it uses the libtorch stable ABI, so one file serves every Python and every torch from 2.10
on. If it cannot be built (no torch, no compiler), the package installs without it, and
``ovlt_kernels.extension.WHY`` says so at run time; ``OVLT_REQUIRE_EXT=1`` makes that an error.
``python setup.py build_native`` builds in place. The CUDA kernels are built if torch has CUDA and
nvcc works; ``OVLT_CUDA=ON`` or ``OFF`` overrides this, and builds again.
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
RECIPES = ROOT / "recipes"
LIBRARY = ROOT / "kernels" / "ovlt_kernels" / "_C.so"
OLDEST_TORCH = (2, 10)  # the first with torch::stable::parallel_for; CMakeLists.txt targets its ABI


class NotBuilt(Exception):
    """The reason why there is no extension, as a sentence for the user."""


def torch_folder() -> Path:
    """Return the folder of the torch package, without the seconds that importing it takes."""
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
    """Return the path of a program on PATH, or of one that pip put beside the interpreter."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


def up_to_date() -> bool:
    """Return whether the library is newer than everything it is made from."""
    if not LIBRARY.exists():
        return False
    sources = [ROOT / "CMakeLists.txt", ROOT / "setup.py", *(ROOT / "csrc").iterdir()]
    return LIBRARY.stat().st_mtime > max(path.stat().st_mtime for path in sources)


def cmake(arguments: list[str]) -> None:
    """Run CMake; raise NotBuilt with the end of its output if it fails."""
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
    if done.returncode:
        LIBRARY.unlink(missing_ok=True)  # an outdated library would fail later, and less clearly
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise NotBuilt(f"`{' '.join(arguments)}` failed:\n{tail}\n")


def build_library() -> None:
    """Compile csrc/ into LIBRARY; raise NotBuilt with the reason if that fails."""
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
    # Copy beside it and rename: a process that has the old library mapped keeps it.
    new = LIBRARY.with_suffix(".so.new")
    shutil.copyfile(folder / "_C.so", new)
    new.replace(LIBRARY)


class BuildNative(Command):
    """The command `build_native`, also a step of `build` and of an editable install."""

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


class BuildRecipes(Command):
    """The command `build_recipes`: copy recipes/ into a wheel as ovlt/recipes/.

    An editable install needs no copy: ovlt.config.places finds the folder of the checkout.
    """

    description = "copy the recipes into the package"
    user_options = []  # noqa: RUF012 (setuptools reads a class attribute)
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def get_output_mapping(self) -> dict[str, str]:
        if self.editable_mode or self.build_lib is None:
            return {}
        target = Path(self.build_lib) / "ovlt" / "recipes"
        sources = sorted(path for path in RECIPES.rglob("*") if path.is_file())
        return {str(target / path.relative_to(RECIPES)): str(path) for path in sources}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())

    def get_source_files(self) -> list[str]:
        files = sorted(path for path in RECIPES.rglob("*") if path.is_file())
        return [str(path.relative_to(ROOT)) for path in files]

    def run(self) -> None:
        for target, source in self.get_output_mapping().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


class Build(build):
    # build_native runs before build_py, which copies the library. It is not inside build_py: an
    # editable install swallows the errors of a customised build_py, and OVLT_REQUIRE_EXT=1 would
    # do nothing.
    sub_commands = [  # noqa: RUF012
        ("build_native", None),
        *build.sub_commands,
        ("build_recipes", None),
    ]


class Wheel(bdist_wheel):
    """A wheel bound to a platform (it holds the library), but to no Python version."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False  # setuptools cannot know it: the library is built later

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    # Not kernels/ itself but its content is a package: transformers looks for a package `kernels`.
    packages=find_packages(include=["ovlt", "ovlt.*"]) + find_packages("kernels"),
    package_dir={"ovlt_kernels": "kernels/ovlt_kernels"},
    package_data={"ovlt": ["**/*.html", "**/*.css", "**/*.js"], "ovlt_kernels": ["_C.so"]},
    cmdclass={
        "build": Build,
        "build_native": BuildNative,
        "build_recipes": BuildRecipes,
        "bdist_wheel": Wheel,
    },
)
