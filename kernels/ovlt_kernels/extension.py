"""Load the compiled operators (csrc/) into ``torch.ops.ovlt``, if they were built.

``HAS_EXTENSION`` is whether they are there, ``WHY`` a sentence that says why or why not, and
``HAS_CUDA`` whether they were built for GPUs too. Every operator has a plain PyTorch statement that
runs without the extension.
"""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.so")
OPERATORS = ("row_logp", "row_logp_grad_", "resize_bicubic", "patchify", "preprocess")
CUDA_OPERATORS = ("row_logp", "row_logp_grad_")


def load(library: Path = LIBRARY) -> tuple[bool, str]:
    """Load ``library`` once per process; returns (loaded, why) and never raises."""
    if not library.exists():
        return False, (
            f"{library.name} was not built: it needs cmake and a C++20 compiler when ovlt is "
            "installed. `OVLT_REQUIRE_EXT=1 python setup.py build_native` builds it or shows what "
            "is missing."
        )
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return False, (
            f"{library.name} does not load in torch {torch.__version__}: {error}. Delete {library} "
            "and build it again: `OVLT_REQUIRE_EXT=1 python setup.py build_native`."
        )
    missing = [name for name in OPERATORS if not hasattr(torch.ops.ovlt, name)]
    if missing:
        return False, (
            f"{library.name} is of an older ovlt, without {', '.join(missing)}: build it again, "
            "`OVLT_REQUIRE_EXT=1 python setup.py build_native`."
        )
    return True, f"{library.name} is loaded"


def has_cuda() -> bool:
    """Return whether the operators that also exist in CUDA were built with it."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return all(has_kernel(f"ovlt::{name}", "CUDA") for name in CUDA_OPERATORS)


HAS_EXTENSION, WHY = load()
HAS_CUDA = HAS_EXTENSION and has_cuda()
