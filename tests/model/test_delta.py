"""The delta rule and the convolution within segments against their plain statements."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.delta_inputs import (
    LAYOUTS,
    NAMES,
    check_errors,
    conv_inputs,
    delta_inputs,
    one_by_one,
    results,
    transformers_conv,
    transformers_delta,
)
from helpers.segments import segments_of_groups
from safetensors.torch import load_file
from torch import Tensor

from ovlt.model import delta, delta_fla
from ovlt.model.delta import (
    causal_conv,
    causal_conv_reference,
    choose_backend,
    gated_delta,
    gated_delta_reference,
)
from ovlt.model.segments import Segments

TESTS = Path(__file__).resolve().parents[1]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_errs_at_most_twice_what_transformers_does_one_by_one(
    dtype: torch.dtype, layout: str
) -> None:
    """Each response behind a copy of its prompt; autograd sums the gradients of the copies."""
    row = segments_of_groups(LAYOUTS[layout])
    inputs, cotangent = delta_inputs(row.total, (2, 4), (16, 24), dtype)
    check_errors(
        results(lambda *x: gated_delta(*x, row), inputs, cotangent),
        results(one_by_one(transformers_delta, row), inputs, cotangent),
        results(lambda *x: gated_delta_reference(*x, row), inputs, cotangent, exact=True),
    )
    inputs, cotangent = conv_inputs(row.total, 12, 4, dtype)
    check_errors(
        results(lambda *x: causal_conv(*x, row), inputs, cotangent),
        results(one_by_one(transformers_conv, row), inputs, cotangent),
        results(lambda *x: causal_conv_reference(*x, row), inputs, cotangent, exact=True),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_its_statement_in_float64(layout: str) -> None:
    row = segments_of_groups(LAYOUTS[layout])
    for heads in ((2, 2), (1, 3)):
        inputs, cotangent = delta_inputs(row.total, heads, (8, 5), torch.float64)
        got = results(lambda *x: gated_delta(*x, row), inputs, cotangent)
        want = results(lambda *x: gated_delta_reference(*x, row), inputs, cotangent)
        for name, ours, exact in zip(NAMES, got, want, strict=True):
            scale = max(1.0, float(exact.abs().max()))
            assert float((ours - exact).abs().max()) <= 1e-12 * scale, name
    for taps in (1, 2, 4):
        inputs, cotangent = conv_inputs(row.total, 6, taps, torch.float64)
        got = results(lambda *x: causal_conv(*x, row), inputs, cotangent)
        want = results(lambda *x: causal_conv_reference(*x, row), inputs, cotangent)
        for ours, exact in zip(got, want, strict=True):
            torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    row = Segments([3, 2, 1, 2], [-1, 0, 0, -1])
    inputs, _ = delta_inputs(row.total, (1, 2), (3, 2), torch.float64)
    leaves = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: gated_delta(*x, row), leaves)
    inputs, _ = conv_inputs(row.total, 2, 3, torch.float64)
    leaves = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: causal_conv(*x, row), leaves)


def test_the_statements_are_the_textbook_formulas() -> None:
    """A prompt of one token and two responses of one, one head, written out."""
    row = Segments([1, 1, 1], [-1, 0, 0])
    (q, k, v, g, beta), _ = delta_inputs(3, (1, 1), (4, 2), torch.float64)
    got = gated_delta_reference(q, k, v, g, beta, row)[:, 0]
    q, k = (F.normalize(x[:, 0], dim=-1) for x in (q, k))
    prompt = beta[0] * torch.outer(k[0], v[0, 0])
    torch.testing.assert_close(got[0], q[0] @ prompt / 2, rtol=1e-5, atol=0)
    for t in (1, 2):
        state = g[t].exp() * prompt
        state = state + beta[t] * torch.outer(k[t], v[t, 0] - state.T @ k[t])
        torch.testing.assert_close(got[t], q[t] @ state / 2, rtol=1e-5, atol=1e-9)
    x, w = torch.randn(3, 1, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    sums = [w[0, 1] * x[0, 0]] + [w[0, 0] * x[0, 0] + w[0, 1] * x[t, 0] for t in (1, 2)]
    torch.testing.assert_close(causal_conv_reference(x, w, row)[:, 0], F.silu(torch.stack(sums)))


def test_what_is_wrong_in_a_segment_reaches_only_what_continues_it() -> None:
    """Forward and backward: all else is bitwise what it is without it."""
    row = Segments([6, 4, 5, 3, 70, 9], [-1, 0, 0, -1, 3, -1])
    reached = {0: [0, 1, 2], 1: [1], 3: [3, 4], 5: [5]}  # segment -> segments
    owner = torch.repeat_interleave(torch.arange(6), torch.tensor(row.lengths))
    cases: list[tuple[Callable[..., Tensor], list[Tensor], Tensor]] = [
        (lambda *x: gated_delta(*x, row), *delta_inputs(row.total, (2, 2), (8, 8), torch.float32)),
        (lambda x: causal_conv(x, weight, row), *conv_inputs(row.total, 4, 4, torch.float32)),
    ]
    weight = cases[1][1].pop()
    for function, inputs, cotangent in cases:
        clean = function(*inputs)
        for bad, expected in reached.items():
            spoiled = [x.clone() for x in inputs]
            for x in spoiled:
                x[owner == bad] = torch.nan
            out = function(*spoiled)
            wrong = ~out.isfinite().flatten(1).all(1)
            touched = owner[wrong].unique().tolist()
            assert touched == expected
            assert torch.equal(out[~wrong], clean[~wrong])
        for rows, expected in ((2, [0, 2]), (0, [0]), (4, [3, 4])):  # and the gradients
            only = torch.where((owner == rows)[:, None], cotangent.flatten(1), 0.0)
            _, *grads = results(function, inputs, only.view_as(cotangent))
            gradient = torch.stack([x.flatten(1).any(1) for x in grads]).any(0)
            assert owner[gradient].unique().tolist() == expected


def test_a_segment_is_the_same_in_any_row() -> None:
    """Bitwise: whatever else is in the row, and in whatever order."""
    lengths = [70, 5, 33, 128, 5]
    row = Segments(lengths)
    inputs, _ = delta_inputs(row.total, (2, 2), (16, 16), torch.float32)
    whole = gated_delta(*inputs, row)
    for s in (0, 1, 2, 3):
        span = slice(row.starts[s], row.starts[s] + lengths[s])
        alone = gated_delta(*(x[span] for x in inputs), Segments([lengths[s]]))
        assert torch.equal(alone, whole[span])


def test_few_calls_for_many_segments() -> None:
    row = segments_of_groups([(70, [3, 66]), (9, []), (100, [20, 2]), (64, [])])
    calls = delta.layout_of(row).chunks.calls
    shapes = [(c.segments, c.chunks, c.size, c.parents is not None) for c in calls]
    assert shapes == [
        ([3], 1, 16, False), ([7], 1, 64, False), ([0, 4], 2, 64, False),
        ([1, 6], 1, 16, True), ([5], 1, 32, True), ([2], 2, 64, True),
    ]  # fmt: skip
    assert delta.layout_of(row) is delta.layout_of(row)


# --- fla, in Triton's interpreter ---------------------------------------------------------------
@pytest.mark.slow
def test_fla_equals_the_statement_with_boundaries_and_shared_prompts(tmp_path: Path) -> None:
    pytest.importorskip("fla")  # requirements/common.txt has it
    root = TESTS.parent
    path = [str(p) for p in (root, root / "kernels", TESTS)] + [os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, TESTS / "workers" / "delta_worker.py", tmp_path / "values"],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    values = load_file(tmp_path / "values")
    names = {name.removeprefix("exact/") for name in values if name.startswith("exact/")}
    assert len(names) == 2 * (6 + 3)
    for name in names:
        exact, got = values[f"exact/{name}"], values[f"fla/{name}"]
        scale = float(exact.abs().max())
        assert scale > 0.1, name
        assert float((got - exact).abs().max()) <= 2e-5 * scale, name


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "not installed: pip install 'fla-core==0.6.0'"), ("0.7.1", "0.7.1 was not tried.*pip")],
)
def test_a_gpu_without_a_tried_fla_is_told_the_cure(
    monkeypatch: pytest.MonkeyPatch, version: str | None, message: str
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(delta_fla.importlib.metadata, "version", installed)
    gpu = torch.device("cuda")
    with pytest.raises(ValueError, match=message):
        choose_backend(gpu, torch.bfloat16)
    assert choose_backend(gpu, torch.bfloat16, "torch") == "torch"
    assert choose_backend(torch.device("cpu"), torch.bfloat16) == "torch"


# --- errors ------------------------------------------------------------------------------------
def call(**changes: Any) -> Tensor:
    given: dict[str, Any] = {
        "q": torch.zeros(7, 2, 16),
        "k": torch.zeros(7, 2, 16),
        "v": torch.zeros(7, 4, 8),
        "g": torch.zeros(7, 4),
        "beta": torch.zeros(7, 4),
        "segments": Segments([3, 4]),
    }
    return gated_delta(**given | changes)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"q": torch.zeros(1, 7, 2, 16)}, "no batch dimension"),
    "heads": ({"v": torch.zeros(7, 3, 8)}, "must be a multiple"),
    "gates": ({"g": torch.zeros(7, 2)}, "g and beta must be"),
    "tokens": ({"segments": Segments([3, 5])}, "end at 8, but the inputs have 7 rows"),
    "dtype": ({"q": torch.zeros(7, 2, 16).bfloat16()}, "one floating dtype"),
    "whole gates": ({"beta": torch.zeros(7, 4, dtype=torch.int32)}, "beta must be floating point"),
    "elsewhere": ({"segments": Segments([3, 4], device="meta")}, "one device, not cpu, meta"),
    "absent": ({"backend": "fla"}, "'fla': it needs CUDA tensors, not cpu"),
    "unknown": ({"backend": "mamba"}, r"'mamba': ovlt knows \('fla', 'torch'\)"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_answered_with_its_cure(changes: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_the_weight_of_the_convolution_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\[7, 4\] and \[3, 4\]"):
        causal_conv(torch.zeros(7, 4), torch.zeros(3, 4), Segments([7]))
