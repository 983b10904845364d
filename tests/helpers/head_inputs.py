"""Rows, a head and targets of odd sizes, for the tests of the head's operators."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
R, H, V = 13, 7, 37


def inputs(
    rows: int = R,
    hidden: int = H,
    vocab: int = V,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, hidden, generator=generator, dtype=torch.float64) * scale
    w = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    target = torch.randint(4, vocab, (rows,), generator=generator)
    x, w = (t.to(device, dtype).requires_grad_() for t in (x, w))
    return x, w, target.to(device)
