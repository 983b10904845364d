"""The language-model head of ``ovlt_kernels`` against plain PyTorch (``make bench``).

A group is one operation at one shape: "ovlt" is the kernel, "plain" its PyTorch statement. Before
the clock starts the two must agree. "smoke" has the head of the model of recipes/smoke.toml, "qwen"
the vocabulary of Qwen2.5-VL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timing import DEVICE, timed
from torch import Tensor

from ovlt_kernels.linear_logp import linear_logp, linear_logp_reference
from ovlt_kernels.row_logp import row_logp, row_logp_reference

ROWS = {"smoke": (1500, 512), "qwen": (64, 151_936)}  # R, V
HEADS = {"smoke": (1500, 128, 512), "qwen": (64, 256, 151_936)}  # R, H, V


@pytest.mark.parametrize("which", ["ovlt", "plain"])
@pytest.mark.parametrize("shape", ROWS)
def test_row_logp(benchmark: Any, shape: str, which: str) -> None:
    rows, vocab = ROWS[shape]
    torch.manual_seed(0)
    logits = 4 * torch.randn(rows, vocab, device=DEVICE)
    target = torch.randint(vocab, (rows,), device=DEVICE)
    for ours, plain in zip(
        row_logp(logits, target), row_logp_reference(logits, target), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)
    function = row_logp if which == "ovlt" else row_logp_reference
    timed(benchmark, f"row_logp {shape}", lambda: function(logits, target), shape=[rows, vocab])


@pytest.mark.parametrize("which", ["ovlt", "plain"])
@pytest.mark.parametrize("shape", HEADS)
def test_linear_logp_forward_and_backward(benchmark: Any, shape: str, which: str) -> None:
    rows, width, vocab = HEADS[shape]
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=DEVICE, requires_grad=True)
    weight = (torch.randn(vocab, width, device=DEVICE) / 16).requires_grad_()
    target = torch.randint(vocab, (rows,), device=DEVICE)

    def gradients(function: Callable[..., Any]) -> tuple[Tensor, ...]:
        head = function(hidden, weight, target)
        return torch.autograd.grad((head.logp + 0.1 * head.entropy).sum(), (hidden, weight))

    for ours, plain in zip(gradients(linear_logp), gradients(linear_logp_reference), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)
    function = linear_logp if which == "ovlt" else linear_logp_reference
    timed(benchmark, f"linear_logp {shape}", lambda: gradients(function), shape=HEADS[shape])
