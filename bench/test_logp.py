"""Log-probs and entropies alone, forward only: from hidden states, and from ready logits.

``logp`` is what the old and reference passes do: one matrix product, whose time is the floor.
``row_logp`` starts from logits that are there, and its floor is reading them once (here: their
sum); ``row_grad`` writes the gradient over them, and its floor is reading and writing them once.
On a GPU "ovlt" is the kernel in Triton and "ovlt_cuda" the one in CUDA, where that was built: the
default of OVLT_ROW_KERNEL goes by their times.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from head import peer
from timing import DEVICE, absent, relative_errors, short, timed
from torch import Tensor

from ovlt_kernels import row_logp as row_logp_module
from ovlt_kernels.extension import HAS_CUDA
from ovlt_kernels.linear_logp import linear_logp
from ovlt_kernels.row_logp import row_logp, row_logp_grad_, row_logp_reference

ON_GPU = DEVICE.type == "cuda"
LOGITS = (  # R, V
    {"3B": (4096, 151_936), "7B": (4096, 152_064)}
    if ON_GPU
    else {"smoke": (1504, 464), "qwen": (64, 151_936)}
)
HEADS = (  # N, H, V
    {"3B": (16_384, 2048, 151_936), "7B": (16_384, 3584, 152_064)}
    if ON_GPU
    else {"wide": (2048, 256, 32_768)}
)
DTYPES = [torch.bfloat16, torch.float32]
# On a GPU each of ovlt's two kernels is timed by name, whatever OVLT_ROW_KERNEL says.
KERNELS = {"ovlt": "triton", "ovlt_cuda": "cuda"} if ON_GPU else {"ovlt": "cpu"}
Pair = tuple[Tensor, Tensor]


def plain(logits: Tensor, target: Tensor) -> Pair:
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@functools.cache
def compiled() -> Any:
    return torch.compile(plain, dynamic=False)


def trl(logits: Tensor, target: Tensor) -> Pair:
    return peer("trl.trainer.utils").selective_log_softmax_and_entropy(logits, target)


@functools.lru_cache(maxsize=1)
def logits_of(shape: str, dtype: torch.dtype) -> Pair:
    rows, vocab = LOGITS[shape]
    random = {"generator": torch.Generator(DEVICE).manual_seed(0), "device": DEVICE}
    logits = (4 * torch.randn(rows, vocab, **random)).to(dtype)
    return logits, torch.randint(vocab, (rows,), **random)


def choose_kernel(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if which == "ovlt_cuda" and not HAS_CUDA:
        absent("built without CUDA")
    if which in KERNELS:
        monkeypatch.setattr(row_logp_module, "gpu_kernel", lambda: KERNELS[which])


@pytest.mark.parametrize("which", [*KERNELS, "eager", "compiled", "trl", "floor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("shape", LOGITS)
@torch.no_grad()
def test_row_logp(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, shape: str, dtype: torch.dtype, which: str
) -> None:
    choose_kernel(which, monkeypatch)
    logits, target = logits_of(shape, dtype)
    info: dict[str, Any] = {"shape": LOGITS[shape], "which": which, "bytes": logits.nbytes}
    if which == "floor":
        run = logits.sum
    else:
        ours = dict.fromkeys(KERNELS, row_logp)
        function = (ours | {"eager": plain, "trl": trl, "compiled": compiled()})[which]
        run = functools.partial(function, logits, target)
        few = slice(0, 256)  # in float64 all of them would fill a GPU
        exact = row_logp_reference(logits[few].double(), target[few])
        info["errors"] = relative_errors([value[few] for value in run()[:2]], exact[:2])
    timed(benchmark, f"row_logp {shape} {short(dtype)}", run, **info)


@pytest.mark.parametrize("which", [*KERNELS, "floor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("shape", LOGITS)
@torch.no_grad()
def test_row_grad(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, shape: str, dtype: torch.dtype, which: str
) -> None:
    choose_kernel(which, monkeypatch)
    logits, target = logits_of(shape, dtype)
    stats, g = row_logp(logits, target), torch.ones_like(target, dtype=torch.float32)
    work = logits.clone()  # after the first round a gradient of gradients, which takes no longer
    if which in KERNELS:
        run = functools.partial(row_logp_grad_, work, target, stats, g, 0.1 * g)
    else:
        run = functools.partial(work.mul_, 1.0)
    info = {"shape": LOGITS[shape], "which": which, "bytes": 2 * logits.nbytes}
    timed(benchmark, f"row_grad {shape} {short(dtype)}", run, **info)


@pytest.mark.parametrize("which", ["ovlt", "eager", "trl", "floor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("shape", HEADS)
@torch.no_grad()
def test_logp(benchmark: Any, shape: str, dtype: torch.dtype, which: str) -> None:
    rows, width, vocab = HEADS[shape]
    random = {"generator": torch.Generator(DEVICE).manual_seed(0), "device": DEVICE}
    x = torch.randn(rows, width, **random).to(dtype)
    w = torch.randn(vocab, width, **random).mul_(1 / width**0.5).to(dtype)
    target = torch.randint(vocab, (rows,), **random)
    info: dict[str, Any] = {"shape": HEADS[shape], "which": which}

    def chunked() -> tuple[Tensor, ...]:
        apply = peer("trl.kernels").ChunkedLogProbFunction.apply
        return apply(x, w, None, target, 1.0, 32_768, None, 1.0, ("entropy",))

    run = {
        "ovlt": lambda: linear_logp(x, w, target),
        "eager": lambda: plain(x @ w.t(), target),
        "trl": chunked,
        "floor": lambda: x @ w.t(),
    }[which]
    if which != "floor":
        few = slice(0, 256)
        exact = linear_logp(x[few].double(), w.double(), target[few])
        got = run()[:2]
        if any(value is None for value in got):
            absent("no entropy")
        info["errors"] = relative_errors([value[few] for value in got], exact[:2])
    timed(benchmark, f"logp forward {shape} {short(dtype)}", run, **info)
