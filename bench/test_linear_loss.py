"""The fused GRPO head against the eager chain and against its floor (``make bench``).

A group is one shape and dtype. "ovlt" is ``linear_loss`` with a clipped policy loss and an entropy
bonus; "eager" the same loss on all logits with autograd; "floor" the three bare matrix products
that no implementation can do without. ``extra_info`` holds the peak of memory beyond the inputs
(MiB) and the relative error of the head's gradient against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timing import DEVICE, timed
from torch import Tensor

from ovlt_kernels.linear_logp import HeadOutput, linear_logp_reference
from ovlt_kernels.linear_loss import linear_loss

SHAPES = {"smoke": (1500, 128, 464), "wide": (2048, 256, 32_768)}  # N, H, V
if DEVICE.type == "cuda":
    SHAPES = {"3B": (16_384, 2048, 151_936), "7B": (16_384, 3584, 152_064)}


class Case:
    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        rows, width, vocab = shape
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, width, generator=generator)
        w = torch.randn(vocab, width, generator=generator) / width**0.5
        self.x, self.w = (t.to(DEVICE, dtype).requires_grad_() for t in (x, w))
        self.target = torch.randint(vocab, (rows,), generator=generator).to(DEVICE)
        self.advantage = torch.randn(rows, generator=generator).to(DEVICE)
        old, _, _ = linear_loss(self.x, self.w, self.target, lambda head, block: head.logp.sum())[1]
        self.old = old + 0.1 * torch.randn(rows, generator=generator).to(DEVICE)

    def objective(self, head: HeadOutput, block: slice) -> Tensor:
        a = self.advantage[block]
        ratio = (head.logp - self.old[block]).exp()
        bounded = torch.where(a > 0, ratio.clamp(max=1.3), ratio.clamp(min=0.8, max=3.0))
        return -(bounded * a).sum() - 0.01 * head.entropy.sum()

    def ovlt(self) -> tuple[Tensor, ...]:
        loss, _ = linear_loss(self.x, self.w, self.target, self.objective)
        return torch.autograd.grad(loss, (self.x, self.w))

    def eager(self) -> tuple[Tensor, ...]:
        logits = (self.x @ self.w.t()).float()
        log_p = logits.log_softmax(-1)
        logp = log_p.gather(1, self.target[:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        loss = self.objective(HeadOutput(logp, entropy, entropy), slice(None))
        return torch.autograd.grad(loss, (self.x, self.w))

    def floor(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            dz = self.x @ self.w.t()
            return dz @ self.w, dz.t() @ self.x


def peak_mib(run: Callable[[], object]) -> float:
    """The most memory beyond what there was before; on a CPU of the whole process (VmHWM)."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(name)))

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


@pytest.mark.parametrize("which", ["ovlt", "eager", "floor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_grpo_head(benchmark: Any, shape: str, dtype: torch.dtype, which: str) -> None:
    case = Case(SHAPES[shape], dtype)
    run = getattr(case, which)
    info: dict[str, Any] = {"shape": SHAPES[shape], "peak_mib": round(peak_mib(run), 1)}
    if which != "floor" and SHAPES[shape][2] < 100_000:
        x, w = (t.detach().double().requires_grad_() for t in (case.x, case.w))
        loss = case.objective(linear_logp_reference(x, w, case.target), slice(None))
        exact = torch.autograd.grad(loss, w)[0]
        info["weight_grad_error"] = float((run()[1] - exact).norm() / exact.norm())
        del x, w, loss, exact
    timed(benchmark, f"grpo_head {shape} {str(dtype).split('.')[1]}", run, **info)
