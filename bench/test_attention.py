"""Attention over packed segments against padding and against one call per segment.

A group is one mix of lengths and one dtype, forward and backward. "ovlt" is ``varlen_attention``
with the backend that it takes by itself, "ovlt_NAME" with another one that this machine has.
"eager" is SDPA over a batch filled up to its longest segment, with a mask for causality and
filling; its inputs are padded before the clock starts, as a trainer that pads has them. "loop" is
SDPA called once per segment. "smoke" has the lengths and heads of recipes/smoke.toml, "text" those
of short prompts with their answers and of the decoder, "long" one long answer among short ones,
"windows" and "images" the vision tower's windows of 64 patches and its whole images. On a CPU there
are fewer heads and segments. Errors are those of the output and the three gradients.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timing import DEVICE, relative_errors, short, timed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ovlt.model.attention import available_backends, varlen_attention, varlen_attention_reference

CUDA = DEVICE.type == "cuda"
TEXT_HEADS, VISION_HEADS = ((28, 4), (16, 16)) if CUDA else ((8, 2), (4, 4))


def spread(low: int, high: int, count: int) -> list[int]:
    """``count`` lengths from ``low`` to ``high``, in no order."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high + 1, (count,), generator=generator).tolist()


# name -> lengths, (Hq, Hkv), D, causal
MIXES: dict[str, tuple[list[int], tuple[int, int], int, bool]] = {
    "smoke": (spread(36, 80, 64), (4, 2), 32, True),
    "text": (spread(100, 600, 48 if CUDA else 6), TEXT_HEADS, 128, True),
    "long": ([*spread(100, 300, 40 if CUDA else 5), 4096 if CUDA else 900], TEXT_HEADS, 128, True),
    "windows": ([64] * (512 if CUDA else 24), VISION_HEADS, 80, False),
    "images": ([4 * n for n in spread(64, 324, 16 if CUDA else 3)], VISION_HEADS, 80, False),
}
DTYPES = [torch.float32, torch.bfloat16]
CASES = [
    pytest.param(mix, dtype, which, backend, id=f"{mix}-{short(dtype)}-{which}")
    for mix in MIXES
    for dtype in DTYPES
    for which, backend in [
        *(
            (f"ovlt_{name}" if place else "ovlt", name)
            for place, name in enumerate(available_backends(DEVICE, dtype, MIXES[mix][2]))
        ),
        ("loop", "loop"),
        ("eager", "padded"),
    ]
]


class Case:
    def __init__(self, mix: str, dtype: torch.dtype) -> None:
        self.lengths, (heads, kv_heads), dim, self.causal = MIXES[mix]
        generator = torch.Generator().manual_seed(0)
        self.qkv, self.cotangent = [], torch.empty(0)
        for count in (heads, kv_heads, kv_heads, heads):
            made = torch.randn(sum(self.lengths), count, dim, generator=generator)
            self.qkv.append(made.to(DEVICE, dtype))
        self.cotangent = self.qkv.pop()
        ends = list(itertools.accumulate(self.lengths, initial=0))
        self.cu = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
        self.inputs = [x.requires_grad_() for x in self.qkv]
        self.upstream = self.cotangent

    def filled_up(self) -> None:
        """Make the inputs a padded batch [S,H,L,D], and its mask [S,1,L,L]."""
        longest = max(self.lengths)

        def pad(x: Tensor) -> Tensor:
            whole = pad_sequence(list(x.detach().split(self.lengths)), batch_first=True)
            return whole.transpose(1, 2)

        self.inputs = [pad(x).requires_grad_() for x in self.qkv]
        self.upstream = pad(self.cotangent)
        at = torch.arange(longest, device=DEVICE)
        ends = torch.tensor(self.lengths, device=DEVICE)
        self.mask: Tensor | None = (at < ends[:, None])[:, None, None, :].expand(-1, 1, longest, -1)
        if self.causal:
            self.mask = self.mask & (at[:, None] >= at)
        elif len(set(self.lengths)) == 1:
            self.mask = None

    def padded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def loop(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        pieces = []
        for part in zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True):
            heads = [x.transpose(0, 1)[None] for x in part]
            out = F.scaled_dot_product_attention(*heads, is_causal=self.causal)
            pieces.append(out[0].transpose(0, 1))
        return torch.cat(pieces)

    def run(self, how: str) -> tuple[Tensor, ...]:
        if how in ("padded", "loop"):
            out = getattr(self, how)(*self.inputs)
        else:
            out = varlen_attention(*self.inputs, self.cu, causal=self.causal, backend=how)
        return (out.detach(), *torch.autograd.grad(out, self.inputs, self.upstream))

    def packed(self, x: Tensor) -> Tensor:
        """What of a padded result belongs to tokens."""
        if x.dim() == 3:
            return x
        return torch.cat([x[i, :, :n].transpose(0, 1) for i, n in enumerate(self.lengths)])

    def errors(self, how: str) -> list[float]:
        wide = [x.detach().double().requires_grad_() for x in self.qkv]
        out = varlen_attention_reference(*wide, self.cu, causal=self.causal)
        exact = (out.detach(), *torch.autograd.grad(out, wide, self.cotangent.double()))
        return relative_errors([self.packed(got) for got in self.run(how)], exact)


@pytest.mark.parametrize(("mix", "dtype", "which", "how"), CASES)
def test_varlen_attention(
    benchmark: Any, mix: str, dtype: torch.dtype, which: str, how: str
) -> None:
    case = Case(mix, dtype)
    filling = 1 - sum(case.lengths) / (len(case.lengths) * max(case.lengths))
    if how == "padded":
        case.filled_up()
    info = {
        "which": which,
        "how": how,
        "lengths": case.lengths,
        "heads": MIXES[mix][1],
        "filling": round(filling, 3),
        "errors": case.errors(how),
    }
    assert max(info["errors"]) < 8 * torch.finfo(dtype).eps, info["errors"]
    timed(benchmark, f"attention {mix} {short(dtype)}", lambda: case.run(how), **info)
