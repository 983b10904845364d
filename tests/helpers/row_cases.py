"""Rows of logits that are hard on a row kernel, for every kernel that has to pass them."""

from __future__ import annotations

import torch
from torch import Tensor

from ovlt_kernels.row_logp import row_logp_reference

# name -> rows, vocab, dtype, temperature
CASES = {
    "one": (3, 1, torch.float32, 1.0),
    "odd": (5, 37, torch.float32, 0.6),
    "ragged": (3, 4099, torch.float32, 1.3),
    "blocks": (2, 8192, torch.bfloat16, 1.0),
    "unaligned": (3, 4101, torch.bfloat16, 0.8),
    "half": (3, 301, torch.float16, 0.7),
    "offset": (4, 1003, torch.float32, 1.0),
    "banned": (4, 5003, torch.float32, 0.9),
    "lowest": (3, 5009, torch.float32, 1.0),
    "certain": (2, 211, torch.float32, 1.0),
    "none": (0, 19, torch.float32, 1.0),
}


def make(name: str) -> dict[str, Tensor]:
    rows, vocab, dtype, temperature = CASES[name]
    generator = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(rows, vocab, generator=generator)
    target = torch.randint(vocab, (rows,), generator=generator)
    if name == "offset":
        logits += torch.tensor([1e4, -1e4, 300.0, -300.0])[:, None]
    if name == "banned":  # a whole first block, and everything but a few
        logits[0, :4096] = -torch.inf
        logits[1:, 5:] = -torch.inf
        target = torch.tensor([5000, 1, 2, 4])
    if name == "lowest":  # left out by a finite number, a whole first block too
        logits[:, :4500] = torch.finfo(torch.float32).min
        target = torch.tensor([4500, 5008, 4777])
    if name == "certain":
        logits[range(rows), target] += 60
    g, h = torch.randn(2, rows, generator=generator)
    if name == "blocks":
        logits[1], g[1], h[1] = torch.nan, 0.0, 0.0
    if rows > 2:
        g[1] = h[1] = h[2] = 0.0
    values = {"logits": logits.to(dtype), "target": target, "g": g, "h": h}
    per_row = torch.full((rows,), temperature, dtype=torch.float64)
    if name == "odd":
        per_row[1:] = torch.tensor([0.3, 1.0, 1.7, 2.5])
    return values | {"temperature": per_row, "inv_temperature": (1 / per_row).float()}


def statement(case: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Statistics and the gradient of the logits by autograd, computed in ``dtype``."""
    # nearer to the lowest float32, PyTorch's own float32 gradient is NaN
    leaf = case["logits"].to(dtype).clamp(min=-1e30).requires_grad_()
    t = case["temperature"]
    logp, entropy, lse = row_logp_reference(leaf, case["target"], t)
    loss = (logp * case["g"]).sum() + (entropy * case["h"]).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    dead = (case["g"] == 0) & (case["h"] == 0)
    gradient = gradient.masked_fill(dead[:, None], 0.0)  # even of rows that hold NaN
    return [value.detach() for value in (logp, entropy, lse, gradient)]


def assert_errs_at_most_twice_what_plain_pytorch_does(
    name: str, found: dict[str, Tensor], bfloat16_error: float = 0.0
) -> None:
    """``found``: logp, entropy, lse and grad of ``make(name)``, on any device. ``bfloat16_error``
    is allowed on top for a bfloat16 gradient, of its largest entry."""
    case = make(name)
    exact, plain = statement(case, torch.float64), statement(case, torch.float32)
    plain[3] = plain[3].to(case["logits"].dtype)
    for key, true, theirs in zip(("logp", "entropy", "lse", "grad"), exact, plain, strict=True):
        ours = found[key].cpu()
        assert torch.equal(ours.isnan(), true.isnan())
        ours, true, theirs = (value.nan_to_num() for value in (ours, true, theirs))
        assert ours.shape == true.shape
        assert ours.dtype == (case["logits"].dtype if key == "grad" else torch.float32)
        if not true.numel():
            continue
        largest = float(true.abs().max())
        floor = 1e-6 * max(1.0, largest) if key != "grad" else 2**-22 * largest + 1e-8
        if key == "grad" and ours.dtype == torch.bfloat16:
            floor += bfloat16_error * largest
        error, allowed = (float((t.double() - true).abs().max()) for t in (ours, theirs))
        assert error <= 2 * allowed + floor, (key, error, allowed)
