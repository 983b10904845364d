"""Segmented attention against its plain statement in float64, for every backend of the machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.segments import segments_of_groups
from helpers.tiny import random_sample, tiny_folder
from torch import Tensor

from ovlt.model import attention
from ovlt.model.attention import (
    BACKENDS,
    available_backends,
    gather_rows,
    varlen_attention,
    varlen_attention_reference,
)
from ovlt.model.packed_model import empty_model
from ovlt.model.segments import Segments, segments_of
from ovlt.train.pack import collate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = {
    "sorted": [1, 1, 3, 3, 3, 8],
    "unsorted": [5, 1, 37, 1, 5, 2, 37],
    "single": [131],
    "one token": [1],
    "equal": [7] * 19,
}
# [prompt, responses] of each group; a group of one has no responses of its own
GROUPS: dict[str, list[tuple[int, list[int]]]] = {
    "long prompts": [(40, [3, 1, 8]), (64, [5, 5])],
    "long responses": [(2, [40, 33]), (1, [50])],
    "mixed": [(7, []), (9, [2, 30, 1]), (20, [8] * 5), (1, [1]), (17, [])],
}
HEADS = {"mha": (2, 2), "gqa": (8, 2), "mqa": (3, 1)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = [
    pytest.param(dtype, backend, id=f"{name}-{backend}")
    for name, dtype in DTYPES.items()
    for backend in available_backends(DEVICE, dtype, 64)
]


def boundaries(lengths: list[int]) -> Tensor:
    ends = list(itertools.accumulate(lengths, initial=0))
    return torch.tensor(ends, dtype=torch.int32, device=DEVICE)


def inputs(
    lengths: list[int], heads: tuple[int, int], dim: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """q, k, v as the decoder makes them (views of ``[H,T,D]``), and a cotangent."""
    generator = torch.Generator().manual_seed(dim)
    total = sum(lengths)
    made = [
        torch.randn(h, total, dim, generator=generator).to(DEVICE, dtype).transpose(0, 1)
        for h in (heads[0], heads[1], heads[1], heads[0])
    ]
    return made[:3], made[3]


def results(
    function: Callable[..., Tensor], qkv: list[Tensor], cotangent: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The output and the gradients of q, k and v, computed in ``dtype``."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(dtype))]


def sdpa_per_segment(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, **options: Any) -> Tensor:
    """What PyTorch itself gives for one segment at a time."""
    share = q.shape[1] // k.shape[1]
    pieces = []
    for start, end in itertools.pairwise(cu.tolist()):
        heads = [q[start:end]] + [x[start:end].repeat_interleave(share, 1) for x in (k, v)]
        heads = [x.transpose(0, 1)[None] for x in heads]
        pieces.append(F.scaled_dot_product_attention(*heads, **options)[0].transpose(0, 1))
    return torch.cat(pieces)


def check_errors(
    functions: tuple[Callable[..., Tensor], ...], qkv: list[Tensor], cotangent: Tensor
) -> None:
    """Output and gradients of the first err at most twice as much as those of the second.

    The third gives the exact ones, in float64.
    """
    dtype = cotangent.dtype
    for name, got, theirs, true in zip(
        ("out", "dq", "dk", "dv"),
        results(functions[0], qkv, cotangent, dtype),
        results(functions[1], qkv, cotangent, dtype),
        results(functions[2], qkv, cotangent, torch.float64),
        strict=True,
    ):
        assert got.dtype == dtype
        assert got.shape == true.shape
        error, allowed = (float((x.double() - true).abs().max()) for x in (got, theirs))
        floor = torch.finfo(dtype).eps * float(true.abs().max())
        assert error <= 2 * allowed + floor, (name, error, allowed)


@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize(("dtype", "backend"), CASES)
def test_a_shared_prompt_errs_at_most_twice_what_copies_of_it_do(
    dtype: torch.dtype,
    backend: str,
    groups: list[tuple[int, list[int]]],
    heads: tuple[int, int],
    dim: int,
) -> None:
    """Against SDPA over [prompt, response], one at a time; autograd sums the prompt's gradients."""
    shared = segments_of_groups(groups, DEVICE)
    qkv, cotangent = inputs(shared.lengths, heads, dim, dtype)
    spans = [slice(a, a + n) for a, n in zip(shared.starts, shared.lengths, strict=True)]
    options = {"causal": True, "scale": 0.7 * dim**-0.5}

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, shared, backend=backend, **options)

    def copies(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pieces = []
        for span, of in zip(spans, shared.prefix, strict=True):
            rows = [torch.cat([x[spans[of]], x[span]]) if of >= 0 else x[span] for x in (q, k, v)]
            whole = boundaries([len(rows[0])])
            out = sdpa_per_segment(*rows, whole, is_causal=True, scale=options["scale"])
            pieces.append(out[len(rows[0]) - (span.stop - span.start) :])
        return torch.cat(pieces)

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention_reference(q, k, v, shared, **options)

    check_errors((ours, copies, exact), qkv, cotangent)


def test_a_response_sees_its_prompt_and_itself_and_no_other_response() -> None:
    """Forward and backward: what is wrong in a response stays there; in a prompt it reaches all."""
    shared = segments_of_groups([(6, [4, 5]), (3, [2])], DEVICE)
    for backend in available_backends(DEVICE, torch.float32, 64):

        def run(*qkv: Tensor, name: str = backend) -> Tensor:
            return varlen_attention(*qkv, shared, causal=True, backend=name)

        qkv, cotangent = inputs(shared.lengths, (4, 2), 64, torch.float32)
        clean = run(*qkv)
        for bad, reached in ((slice(6, 10), slice(6, 10)), (slice(0, 6), slice(0, 15))):
            spoiled = [x.clone() for x in qkv]
            for x in spoiled[1:]:
                x[bad] = torch.nan
            out = run(*spoiled)
            wrong = ~out.isfinite().flatten(1).all(1)
            assert wrong.nonzero()[:, 0].tolist() == list(range(15))[reached]
            assert torch.equal(out[~wrong], clean[~wrong])
        # A prompt's gradient comes from itself and all of its responses, and nothing else.
        for rows, touched in (
            (slice(10, 15), [*range(6), *range(10, 15)]),
            (slice(0, 6), range(6)),
        ):
            only = torch.zeros_like(cotangent)
            only[rows] = cotangent[rows]
            _, _, dk, _ = results(run, qkv, only, torch.float32)
            assert dk.flatten(1).any(1).nonzero()[:, 0].tolist() == list(touched)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize(("dtype", "backend"), CASES)
def test_errs_at_most_twice_what_pytorch_does_per_segment(
    dtype: torch.dtype,
    backend: str,
    lengths: list[int],
    heads: tuple[int, int],
    dim: int,
    causal: bool,
) -> None:
    qkv, cotangent = inputs(lengths, heads, dim, dtype)
    cu, scale = boundaries(lengths), 0.7 * dim**-0.5
    options = {"causal": causal, "scale": scale}
    if backend == "cpu" and not causal:
        with pytest.raises(ValueError, match="it is causal"):
            varlen_attention(*qkv, cu, backend=backend, **options)
        return

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, cu, backend=backend, **options)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa_per_segment(q, k, v, cu, is_causal=causal, scale=scale)

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention_reference(q, k, v, cu, **options)

    check_errors((ours, plain, exact), qkv, cotangent)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_equals_its_statement_in_float64(causal: bool) -> None:
    (q, k, v), cotangent = inputs(LENGTHS["unsorted"], (6, 2), 32, torch.float64)
    cu = boundaries(LENGTHS["unsorted"])
    got, want = (
        results(lambda *x, f=f: f(*x, cu, causal=causal), [q, k, v], cotangent, torch.float64)
        for f in (varlen_attention, varlen_attention_reference)
    )
    for ours, exact in zip(got, want, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layout", "visible"),
    [
        (Segments([2, 3]), [[0], [0, 1], [2], [2, 3], [2, 3, 4]]),
        (Segments([2, 1, 2], [-1, 0, 0]), [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]),
    ],
    ids=["two samples", "two responses to a prompt"],
)
def test_the_statement_is_the_textbook_formula(layout: Segments, visible: list[list[int]]) -> None:
    """One head: softmax of the scores, written out."""
    q, k, v = torch.randn(3, 5, 1, 4, dtype=torch.float64)
    got = varlen_attention_reference(q, k, v, layout, causal=True)
    for row, seen in enumerate(visible):
        weight = torch.exp(k[seen, 0] @ q[row, 0] / 2)
        torch.testing.assert_close(got[row, 0], (weight / weight.sum()) @ v[seen, 0])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(("dtype", "backend"), CASES)
def test_what_is_wrong_in_a_segment_stays_there(
    dtype: torch.dtype, backend: str, causal: bool, poison: float
) -> None:
    """Forward and backward: the other segments are bitwise what they are without it."""
    if backend == "cpu" and not causal:
        return
    lengths, bad = [5, 9, 5, 1, 9], slice(5, 14)
    (q, k, v), cotangent = inputs(lengths, (4, 2), 64, dtype)
    cu = boundaries(lengths)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, cu, causal=causal, backend=backend)

    clean = results(run, [q, k, v], cotangent, dtype)
    spoiled = [x.clone() for x in (q, k, v)]
    for x in spoiled:
        x[bad] = poison
    keep = torch.ones(sum(lengths), dtype=torch.bool, device=DEVICE)
    keep[bad] = False
    for before, after in zip(clean, results(run, spoiled, cotangent, dtype), strict=True):
        assert torch.equal(before[keep], after[keep])
        assert not after[bad].isfinite().all()


def test_a_causal_row_does_not_see_what_follows() -> None:
    lengths = [6, 4]
    (q, k, v), _ = inputs(lengths, (2, 1), 64, torch.float32)
    cu = boundaries(lengths)
    before = varlen_attention(q, k, v, cu, causal=True)
    k, v = k.clone(), v.clone()
    k[3], v[3] = 3.0, 1e4
    after = varlen_attention(q, k, v, cu, causal=True)
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(before[6:], after[6:])
    assert ((before - after)[3:6].abs() > 1).all()


def test_one_sdpa_call_per_distinct_length() -> None:
    equal = segments_of(boundaries([5, 1, 9, 1, 5, 2, 9])).equal_calls
    assert [(c.segments, c.length) for c in equal.calls] == [(2, 1), (1, 2), (2, 5), (2, 9)]
    assert equal.queries is not None
    # in order: no copy
    assert segments_of(boundaries([1, 1, 2, 5, 5])).equal_calls.queries is None


def test_few_calls_for_similar_lengths_on_a_cpu() -> None:
    lengths = [40, 33, 38, 200, 30, 210, 3]
    buckets = Segments(lengths).buckets
    assert [(c.segments, c.length) for c in buckets.calls] == [(2, 210), (4, 40), (1, 3)]
    assert Segments([7, 7, 7]).buckets.filled is None  # nothing to fill: no copy


def test_rows_that_repeat_are_summed_in_float32() -> None:
    """300 times 1 + 2^-7 in bfloat16: one by one the sum would stop at 256."""
    x = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    gather_rows(x, torch.tensor([1] * 300)).backward(torch.full((300, 1), 1.0078125).bfloat16())
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [0.0, 302.0]  # 302.34, rounded once


@pytest.mark.parametrize(
    "prefix", [[0], [0, -1], [-1, 1], [-1, 0, 1], [-1, -1, 0], [-1, -1, -1, 1, 0]]
)
def test_a_prefix_must_lie_right_before_what_continues_it(prefix: list[int]) -> None:
    with pytest.raises(ValueError, match="directly behind"):
        Segments([2] * len(prefix), prefix)


def test_boundaries_are_read_once_and_again_when_written_to() -> None:
    cu = boundaries([3, 4])
    first = segments_of(cu)
    assert segments_of(cu) is first
    cu[1] = 5
    assert segments_of(cu).lengths == [5, 2]
    with torch.inference_mode():
        assert segments_of(boundaries([2, 1])).longest == 2


def test_boundaries_of_a_batch_are_never_read_from_the_device(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Shown on a device that has no values at all."""
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "m")
    rng = np.random.default_rng(3)
    samples = [random_sample(folder, rng, sizes, 3) for sizes in ([(84, 56)], [])]
    batch = collate(samples, [1.0, 1.0], config=folder.config, patchify=folder.patchify)
    there = batch.to("meta")
    plan, plan_there = batch.vision_plan, there.vision_plan
    assert plan is not None
    assert plan_there is not None
    assert there.segments.device.type == "meta"
    assert there.segments.cu_seqlens.is_meta
    assert there.segments.lengths == batch.segments.lengths
    for here, moved in (
        (plan.keywords["cu_seqlens"], plan_there.keywords["cu_seqlens"]),
        (plan.keywords["cu_window_seqlens"], plan_there.keywords["cu_window_seqlens"]),
    ):
        assert moved.is_meta
        assert segments_of(moved).lengths == here.diff().tolist()


# --- the calls that a machine without a GPU cannot make for real --------------------------------
def bottom_right(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *, causal: bool, scale: float
) -> Tensor:
    """What the varlen kernels document: the last query of a segment sees its last key."""
    share = q.shape[1] // k.shape[1]
    pieces = []
    spans = zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True)
    for (a, b), (c, d) in spans:
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d].repeat_interleave(share, 1)) * scale
        if causal:
            late = torch.arange(d - c) > torch.arange(b - a)[:, None] + (d - c) - (b - a)
            scores = scores.masked_fill(late, -torch.inf)
        values = v[c:d].repeat_interleave(share, 1)
        pieces.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(pieces)


@pytest.mark.parametrize(
    ("causal", "shared"), [(True, False), (False, False), (True, True)],
    ids=["causal", "full", "shared"],
)  # fmt: skip
@pytest.mark.parametrize("gqa_by_name", [True, False], ids=["torch2.13", "torch2.11"])
def test_torch_varlen_is_called_as_its_version_wants(
    monkeypatch: pytest.MonkeyPatch, gqa_by_name: bool, causal: bool, shared: bool
) -> None:
    """A stand-in with the documented signature, which computes the plain statement."""
    layout = Segments([4, 1, 6], [-1, 0, -1] if shared else None, DEVICE)
    (q, k, v), _ = inputs([4, 1, 6], (4, 2), 32, torch.float64)

    def attend(*args: Any, scale: float, window_size: tuple[int, int], **more: Any) -> Tensor:
        q, k, v, cu_q, cu_k, max_q, max_k = args
        assert shared or cu_q is cu_k  # torch 2.15's cuDNN allows causal only then
        assert (max_q, max_k) == (6, 6)
        assert more == ({"enable_gqa": True} if gqa_by_name else {})
        assert q.shape[1] == k.shape[1] or gqa_by_name
        is_causal = {(-1, 0): True, (-1, -1): False}[window_size]
        return bottom_right(q, k, v, cu_q, cu_k, causal=is_causal, scale=scale)

    names = {"window_size", "scale"} | ({"enable_gqa"} if gqa_by_name else set())
    monkeypatch.setattr(attention, "_torch_function", lambda: (attend, frozenset(names)))
    monkeypatch.setattr(attention, "available_backends", lambda *_: ("torch_varlen", "sdpa"))
    got = varlen_attention(q, k, v, layout, causal=causal, scale=0.3)
    want = varlen_attention_reference(q, k, v, layout, causal=causal, scale=0.3)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("deterministic", [True, False])
def test_flash_attn_follows_torchs_switch_for_determinism(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    (q, k, v), _ = inputs([4, 1, 6], (4, 2), 32, torch.float64)
    layout = Segments([4, 1, 6], [-1, 0, 0], DEVICE)

    def attend(*args: Any, softmax_scale: float, causal: bool, **more: Any) -> Tensor:
        q, k, v, cu_q, cu_k, max_q, max_k = args
        assert (max_q, max_k) == (6, 10)
        assert more == {"deterministic": deterministic}
        return bottom_right(q, k, v, cu_q, cu_k, causal=causal, scale=softmax_scale)

    monkeypatch.setattr(attention, "_flash_function", lambda: attend)
    monkeypatch.setattr(attention, "available_backends", lambda *_: ("flash", "sdpa"))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    got = varlen_attention(q, k, v, layout, causal=True)
    want = varlen_attention_reference(q, k, v, layout, causal=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_fused_kernels_are_for_16_bit_numbers_on_a_gpu() -> None:
    assert available_backends("cpu", torch.bfloat16, 128) == ("cpu", "sdpa")
    assert available_backends("cpu", torch.float16, 128) == ("sdpa",)
    assert not {"flash", "torch_varlen"} & set(available_backends(DEVICE, torch.float32, 128))
    assert set(available_backends(DEVICE, torch.bfloat16, 128)) <= set(BACKENDS)


# --- errors ------------------------------------------------------------------------------------
def call(**changes: Any) -> Tensor:
    given: dict[str, Any] = {
        "q": torch.zeros(7, 4, 16),
        "k": torch.zeros(7, 2, 16),
        "v": torch.zeros(7, 2, 16),
        "segments": torch.tensor([0, 3, 7], dtype=torch.int32),
        "causal": True,
    }
    return varlen_attention(**given | changes)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"q": torch.zeros(1, 7, 4, 16)}, "no batch dimension"),
    "k and v": ({"v": torch.zeros(7, 1, 16)}, "no batch dimension"),
    "tokens": ({"q": torch.zeros(8, 4, 16)}, "agree in tokens"),
    "head dim": ({"q": torch.zeros(7, 4, 8)}, "agree in tokens and head dim"),
    "heads": ({"q": torch.zeros(7, 3, 16)}, "must be a multiple"),
    "dtype": ({"q": torch.zeros(7, 4, 16, dtype=torch.bfloat16)}, r"cast them"),
    "whole numbers": (
        {n: torch.zeros(7, 2, 16, dtype=torch.int32) for n in "qkv"},
        "floating dtype",
    ),
    "device": ({"q": torch.zeros(7, 4, 16, device="meta")}, "one device"),
    "int64": ({"segments": torch.tensor([0, 7])}, "must be int32"),
    "no segment": ({"segments": torch.tensor([0], dtype=torch.int32)}, "at least one segment"),
    "start": ({"segments": torch.tensor([1, 7], dtype=torch.int32)}, "start at 0, not at 1"),
    "end": ({"segments": torch.tensor([0, 6], dtype=torch.int32)}, "ends at 6, but q has 7"),
    "empty": (
        {"segments": torch.tensor([0, 3, 3, 7], dtype=torch.int32)},
        "segment 1 has the length 0",
    ),
    "falling": (
        {"segments": torch.tensor([0, 9, 7], dtype=torch.int32)},
        "segment 1 has the length -2",
    ),
    "elsewhere": ({"segments": Segments([3, 4], device="meta")}, "one device, not cpu and meta"),
    "both ways": ({"segments": Segments([3, 4], [-1, 0]), "causal": False}, "pass causal=True"),
    "scale": ({"scale": 0.0}, "scale must be > 0"),
    "unknown": ({"backend": "xformers"}, "'xformers' cannot be used.*Available here: cpu, sdpa"),
    "absent": ({"backend": "flash"}, "needs CUDA tensors, not cpu. Available here: cpu, sdpa"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_answered_with_its_mend(changes: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_dropout"):
        attention.varlen(torch.nn.Identity(), *torch.zeros(3, 1, 1, 1, 8), dropout=0.1)


# --- in transformers ---------------------------------------------------------------------------
def test_names_are_known_to_transformers_and_say_how_they_are_called() -> None:
    """transformers hands a tower whose attention has "flash" in its name all windows at once, and
    looks such a name of a decoder up as a package; so one name has the word, the other has not."""
    from transformers import AttentionInterface

    attention.register()
    attention.register()
    known = AttentionInterface()
    assert known[attention.TEXT_ATTENTION] is attention.varlen
    assert known[attention.VISION_ATTENTION] is attention.varlen
    assert "flash" not in attention.TEXT_ATTENTION
    assert "flash" in attention.VISION_ATTENTION


def test_a_model_whose_attention_was_changed_refuses_to_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Otherwise packed samples would attend to each other, and nothing would say so."""
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "m")
    model = empty_model(folder.config)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    batch = collate([], [], config=folder.config, patchify=folder.patchify)
    with pytest.raises(RuntimeError, match="attend to each other"):
        model(batch)
