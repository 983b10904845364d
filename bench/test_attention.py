"""Attention over packed segments against padding and against one call per segment.

A group is one mix of lengths and one dtype, forward and backward. "ovlt" is ``varlen_attention``
with the backend that it takes by itself, "ovlt_NAME" with another one that this machine has.
"eager" is SDPA over a batch filled up to its longest segment, with a mask for causality and
filling; its inputs are padded before the clock starts, as a trainer that pads has them. "loop" is
SDPA called once per segment. "smoke" has the lengths and heads of recipes/smoke.toml, "text" those
of short prompts with their answers and of the decoder, "long" one long answer among short ones,
"windows" and "images" the vision tower's windows of 64 patches and its whole images. "prompts" and
"smoke prompts" have groups of responses that share their prompt; there "loop" and "eager" take a
copy of the prompt for each response. On a CPU there are fewer heads and segments. Errors are those
of the output and the three gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.segments import segments_of_groups
from timing import DEVICE, relative_errors, short, timed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ovlt.model.attention import available_backends, varlen_attention, varlen_attention_reference
from ovlt.model.segments import Segments

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
# name -> prompts and responses of each group, (Hq, Hkv), D
GROUPS: dict[str, tuple[list[tuple[int, list[int]]], tuple[int, int], int]] = {
    "smoke prompts": ([(26, spread(10, 45, 8)), (30, spread(12, 40, 8))], (4, 2), 32),
    "prompts": (
        [(424, spread(200, 600, 5))] * 6 if CUDA else [(200, spread(60, 200, 5))],
        TEXT_HEADS,
        128,
    ),
}
DTYPES = [torch.float32, torch.bfloat16]


def backends(mix: str, dtype: torch.dtype) -> list[str]:
    """The backends that can run a mix here, best first."""
    dim = GROUPS[mix][2] if mix in GROUPS else MIXES[mix][2]
    causal = mix in GROUPS or MIXES[mix][3]
    return [name for name in available_backends(DEVICE, dtype, dim) if causal or name != "cpu"]


CASES = [
    pytest.param(mix, dtype, which, backend, id=f"{mix}-{short(dtype)}-{which}")
    for mix in (*MIXES, *GROUPS)
    for dtype in DTYPES
    for which, backend in [
        *(
            (f"ovlt_{name}" if place else "ovlt", name)
            for place, name in enumerate(backends(mix, dtype))
        ),
        ("loop", "loop"),
        ("eager", "padded"),
    ]
]


class Case:
    def __init__(self, mix: str, dtype: torch.dtype) -> None:
        if mix in GROUPS:
            groups, self.heads, dim = GROUPS[mix]
            self.segments, self.causal = segments_of_groups(groups, DEVICE), True
        else:
            lengths, self.heads, dim, self.causal = MIXES[mix]
            self.segments = Segments(lengths, device=DEVICE)
        self.lengths = self.segments.lengths
        heads, kv_heads = self.heads
        # What each response would be as a sample of its own: the rows of its prompt and its own.
        spans = [
            torch.arange(a, a + n) for a, n in zip(self.segments.starts, self.lengths, strict=True)
        ]
        self.copies = [
            torch.cat([spans[p], span]) if p >= 0 else span
            for s, (span, p) in enumerate(zip(spans, self.segments.prefix, strict=True))
            if s not in self.segments.prefix
        ]
        generator = torch.Generator().manual_seed(0)
        self.qkv, self.cotangent = [], torch.empty(0)
        for count in (heads, kv_heads, kv_heads, heads):
            made = torch.randn(sum(self.lengths), count, dim, generator=generator)
            self.qkv.append(made.to(DEVICE, dtype))
        self.cotangent = self.qkv.pop()
        self.inputs = [x.requires_grad_() for x in self.qkv]
        self.upstream = self.cotangent

    def filled_up(self) -> None:
        """Make the inputs a padded batch [S,H,L,D], and its mask [S,1,L,L]."""
        lengths = [len(rows) for rows in self.copies]
        longest = max(lengths)

        def pad(x: Tensor) -> Tensor:
            whole = pad_sequence([x.detach()[rows] for rows in self.copies], batch_first=True)
            return whole.transpose(1, 2)

        self.inputs = [pad(x).requires_grad_() for x in self.qkv]
        # The first copy of a prompt has its cotangent; the others have none.
        self.upstream = pad(self.cotangent)
        seen: set[int] = set()
        for i, rows in enumerate(self.copies):
            again = [at for at, row in enumerate(rows.tolist()) if row in seen]
            self.upstream[i, :, again] = 0
            seen |= set(rows.tolist())
        at = torch.arange(longest, device=DEVICE)
        ends = torch.tensor(lengths, device=DEVICE)
        self.mask: Tensor | None = (at < ends[:, None])[:, None, None, :].expand(-1, 1, longest, -1)
        if self.causal:
            self.mask = self.mask & (at[:, None] >= at)
        elif len(set(lengths)) == 1:
            self.mask = None

    def padded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def loop(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        pieces = []
        done = 0  # rows; the next copy of a prompt is computed again, and left out
        for rows in self.copies:
            heads = [x[rows].transpose(0, 1)[None] for x in (q, k, v)]
            out = F.scaled_dot_product_attention(*heads, is_causal=self.causal)
            pieces.append(out[0].transpose(0, 1)[int((rows < done).sum()) :])
            done = int(rows[-1]) + 1
        return torch.cat(pieces)

    def run(self, how: str) -> tuple[Tensor, ...]:
        if how in ("padded", "loop"):
            out = getattr(self, how)(*self.inputs)
        else:
            out = varlen_attention(*self.inputs, self.segments, causal=self.causal, backend=how)
        return (out.detach(), *torch.autograd.grad(out, self.inputs, self.upstream))

    def packed(self, x: Tensor, *, gradient: bool) -> Tensor:
        """What of a padded result belongs to tokens; gradients of copies are added."""
        if x.dim() == 3:
            return x
        total = x.new_zeros(self.segments.total, x.shape[1], x.shape[3])
        for i, rows in reversed(list(enumerate(self.copies))):
            own = x[i, :, : len(rows)].transpose(0, 1)
            total[rows] = total[rows] + own if gradient else own
        return total

    def errors(self, how: str) -> list[float]:
        wide = [x.detach().double().requires_grad_() for x in self.qkv]
        out = varlen_attention_reference(*wide, self.segments, causal=self.causal)
        exact = (out.detach(), *torch.autograd.grad(out, wide, self.cotangent.double()))
        results = [self.packed(got, gradient=i > 0) for i, got in enumerate(self.run(how))]
        return relative_errors(results, exact)


@pytest.mark.parametrize(("mix", "dtype", "which", "how"), CASES)
def test_varlen_attention(
    benchmark: Any, mix: str, dtype: torch.dtype, which: str, how: str
) -> None:
    case = Case(mix, dtype)
    lengths = [len(rows) for rows in case.copies]
    filling = 1 - sum(lengths) / (len(lengths) * max(lengths))
    if how == "padded":
        case.filled_up()
    info = {
        "which": which,
        "how": how,
        "lengths": case.lengths,
        "heads": case.heads,
        "filling": round(filling, 3),
        "errors": case.errors(how),
    }
    assert max(info["errors"]) < 8 * torch.finfo(dtype).eps, info["errors"]
    timed(benchmark, f"attention {mix} {short(dtype)}", lambda: case.run(how), **info)
