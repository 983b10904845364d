"""Makes PyPI's torchvision, a CUDA build, importable beside a CPU torch.

Its compiled operators do not load there, and its Python files then fail while they describe the
missing operator ``torchvision::nms``. transformers (Qwen2.5-VL's processor) and vLLM import
torchvision, the latter in child processes of its own. We use its resize and normalise only, which
are pure torch: so it is enough to declare the operators that it describes, before it does.

:func:`install` puts a finder in ``sys.meta_path`` that does this when torchvision is first
imported, and costs nothing before. Two callers: ``ovlt.system.env.apply`` (so every command and the
tests, also where nothing is installed), and a ``.pth`` of the environment that the Makefile made,
whose copy of this file reaches the processes that never import ovlt. So it imports nothing of ovlt,
and nothing but ``sys`` until torchvision is asked for. With a CUDA torch, or a torchvision that is
no CUDA build, it does nothing.
"""

import sys

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_KEPT = []  # the registration lives as long as its Library object


class TorchvisionShim:
    """Looks at imports until the first inside torchvision, then leaves."""

    @classmethod
    def find_spec(cls, name: str, path: list[str] | None = None, target: object = None) -> None:
        # torchvision/__init__ imports torch and then its submodules. Waiting for the first of these
        # means that `importlib.util.find_spec("torchvision")`, a mere question, triggers nothing.
        if name.startswith("torchvision."):
            sys.meta_path.remove(cls)
            declare_operators(path or [])


def install() -> None:
    """Add the finder, once per process; the copy from the .pth counts."""
    here = any(getattr(f, "__name__", "") == TorchvisionShim.__name__ for f in sys.meta_path)
    if not here and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, TorchvisionShim)


def declare_operators(package_path: list[str]) -> None:
    """Declare nms and qnms if this torch has no GPU and this torchvision was built for one."""
    import os

    import torch

    if torch.version.cuda or torch.version.hip:
        return
    with open(os.path.join(package_path[0], "version.py"), encoding="utf-8") as file:
        if "+cu" not in file.read():
            return  # a CPU build brings its operators
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms" + SCHEMA)
    library.define("qnms" + SCHEMA)
    _KEPT.append(library)
