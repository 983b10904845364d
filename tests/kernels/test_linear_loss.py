"""linear_loss against its plain statement, against linear_logp, and on hostile rows."""

from __future__ import annotations

import pytest
import torch
from helpers.head_inputs import DEVICES, H, R, V, inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ovlt_kernels import waits
from ovlt_kernels.head import PLAIN, HeadOptions, HeadOutput
from ovlt_kernels.linear_logp import linear_logp
from ovlt_kernels.linear_loss import linear_loss, linear_loss_reference

generator = torch.Generator().manual_seed(2)
ADVANTAGE = torch.randn(R, generator=generator, dtype=torch.float64)
ADVANTAGE[[2, 5, 6]] = 0.0
OLD = -5 * torch.rand(R, generator=generator, dtype=torch.float64)


def clipped(head: HeadOutput, block: slice) -> Tensor:
    """A policy loss with an entropy bonus in which some rows have no gradient at all."""
    a, old = (t[block].to(head.logp) for t in (ADVANTAGE, OLD))
    ratio = (head.logp - old).exp()
    bounded = torch.where(a > 0, ratio.clamp(max=1.3), ratio.clamp(min=0.8, max=3.0))
    return -(bounded * a).sum() - 0.01 * (head.entropy * a.abs()).sum()


def nll(head: HeadOutput, block: slice) -> Tensor:
    return -head.logp.sum()


def run(function, x, w, target, objective, options=PLAIN, **chunk):
    loss, head = function(x, w, target, objective, options, **chunk)
    return loss, head, torch.autograd.grad(3.0 * loss, (x, w))


@pytest.mark.parametrize("objective", [clipped, nll])
@pytest.mark.parametrize("temperature", [0.6, torch.linspace(0.5, 1.9, R, dtype=torch.float64)])
@pytest.mark.parametrize("banned", [None, [0, 2, 3]])
@pytest.mark.parametrize("rows_per_chunk", [1, 4, 1000])
def test_matches_the_reference_in_float64(objective, temperature, banned, rows_per_chunk) -> None:
    x, w, target = inputs()
    banned_ids = None if banned is None else torch.tensor(banned)
    options = HeadOptions(temperature, banned_ids=banned_ids)
    loss, head, got = run(
        linear_loss, x, w, target, objective, options, chunk_bytes=4 * V * rows_per_chunk
    )
    want_loss, want_head, want = run(linear_loss_reference, x, w, target, objective, options)
    torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=1e-12)
    for one, other in zip((*head, *got), (*want_head, *want), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert not any(value.requires_grad for value in head)


@pytest.mark.parametrize("rows_per_chunk", [1, 4, 1000])
def test_where_counting_rows_would_wait_the_gradients_are_the_same(
    rows_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, target = inputs()
    # A row that has no part in the loss may hold anything.
    x.data[2] = torch.nan
    size = {"chunk_bytes": 4 * V * rows_per_chunk}

    def quiet(head: HeadOutput, block: slice) -> Tensor:
        return clipped(HeadOutput(*(h.nan_to_num() for h in head)), block)

    results: list[tuple[Tensor, ...]] = []
    for free in (frozenset({"cpu"}), frozenset[str]()):
        monkeypatch.setattr(waits, "_FREE", free)
        by_row = torch.autograd.grad(linear_loss(x, w, target, quiet, **size)[0], (x, w))
        head = linear_logp(x, w, target, **size)
        whole = torch.autograd.grad(quiet(head, slice(0, R)), (x, w))
        results.append((*by_row, *whole))
    for one, other in zip(*results, strict=True):
        assert bool(one.isfinite().all())
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("id", "temperature"), [(V, 1.0), (-100, 1.0), (2, 1.0), (1, 0.0)])
def test_where_reading_would_wait_the_device_stops_at_bad_values(
    id: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_FREE", frozenset[str]())
    x, w, target = inputs()
    target[3] = id
    options = HeadOptions(torch.full((R,), temperature), banned_ids=torch.tensor([2]))
    with pytest.raises(RuntimeError, match="does not fit"):
        linear_logp(x, w, target, options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_what_linear_logp_gives(device: str, dtype: torch.dtype) -> None:
    x, w, target = inputs(dtype=dtype, device=device)
    options, size = HeadOptions(0.7), 4 * V * 5
    loss, head, got = run(linear_loss, x, w, target, clipped, options, chunk_bytes=size)
    plain = linear_logp(x, w, target, options, chunk_bytes=size)
    same = clipped(plain, slice(None))
    want = torch.autograd.grad(3.0 * same, (x, w))
    assert all(torch.equal(a, b) for a, b in zip(head, plain, strict=True))
    torch.testing.assert_close(loss, same.detach(), rtol=1e-6, atol=1e-6)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        # bfloat16: roundings before and after the factor 3
        assert (a - b).norm() <= (8e-3 if dtype == torch.bfloat16 else 1e-6) * b.norm()


@pytest.mark.parametrize("logits_dtype", [None, torch.bfloat16, torch.float32])
def test_bfloat16_errs_at_most_twice_what_plain_pytorch_does(logits_dtype) -> None:
    x, w, target = inputs(129, 64, 1003, dtype=torch.bfloat16, scale=0.5)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    _, _, exact = run(linear_loss_reference, *wide, target, nll)
    options = HeadOptions(logits_dtype=logits_dtype)
    _, _, plain = run(linear_loss_reference, x, w, target, nll, options)
    _, _, got = run(linear_loss, x, w, target, nll, options, chunk_bytes=4 * 1003 * 16)
    for ours, theirs, true in zip(got, plain, exact, strict=True):
        assert (ours - true).norm() <= 2 * (theirs - true).norm()


def test_three_products_and_fewer_where_rows_or_inputs_have_no_gradient() -> None:
    x, w, target = inputs()
    product = 2 * R * H * V

    def flops(objective, x, w) -> int:
        with FlopCounterMode(display=False) as counter:
            loss, _ = linear_loss(x, w, target, objective, chunk_bytes=4 * V * 4)
            if loss.requires_grad:
                loss.backward()
        return counter.get_total_flops()

    assert flops(nll, x, w) == 3 * product
    assert flops(nll, x.detach(), w) == flops(nll, x, w.detach()) == 2 * product
    assert flops(nll, x.detach(), w.detach()) == product
    with torch.no_grad():
        assert flops(nll, x, w) == product

    def first_two(head: HeadOutput, block: slice) -> Tensor:
        return (head.logp * (torch.arange(R)[block] < 2)).sum()

    assert flops(first_two, x, w) == product + 2 * (2 * 2 * H * V)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("others", [0, 6])
def test_a_masked_row_may_hold_nan(device: str, others: int) -> None:
    """Whether it is dropped with others or kept as a row of zeros."""
    x, w, target = inputs(dtype=torch.float32, device=device)
    keep = torch.arange(R, device=device) != 4
    keep[R - others :] = False

    def masked(head: HeadOutput, block: slice) -> Tensor:
        return torch.where(keep[block], head.logp, 0.0).sum()

    want = run(linear_loss, x, w, target, masked)[2]
    bad = x.detach().clone()
    bad[4] = torch.nan
    loss, head, got = run(linear_loss, bad.requires_grad_(), w, target, masked)
    assert loss.isfinite()
    assert head.logp[4].isnan()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows_and_no_gradient_keep_the_graph(device: str) -> None:
    x, w, target = inputs(rows=0, dtype=torch.bfloat16, device=device)
    loss, head, (gx, gw) = run(linear_loss, x, w, target, nll)
    assert float(loss.detach()) == 0.0
    assert head.logp.shape == (0,)
    assert gx.shape == x.shape
    assert gw.shape == w.shape
    assert not gw.any()
    x, w, target = inputs(dtype=torch.float32, device=device)
    _, _, grads = run(linear_loss, x, w, target, lambda head, block: head.logp.detach().sum())
    assert not any(g.any() for g in grads)


def test_weight_gradient_does_not_degrade_with_the_number_of_chunks() -> None:
    x, w, target = inputs(256, 16, 211, dtype=torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    exact = run(linear_loss_reference, *wide, target, nll)[2][1]
    errors = [
        (run(linear_loss, x, w, target, nll, chunk_bytes=4 * 211 * rows)[2][1] - exact).norm()
        for rows in (256, 64, 16, 4, 1)
    ]
    assert max(errors) < 1.1 * min(errors)


def test_backward_twice_gives_the_same_and_second_derivatives_are_refused() -> None:
    x, w, target = inputs()
    loss, _ = linear_loss(x, w, target, clipped)
    first = torch.autograd.grad(loss, (x, w), retain_graph=True)
    again = torch.autograd.grad(loss, (x, w), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(again[0].sum(), x)


def test_an_objective_that_is_no_scalar_is_refused() -> None:
    x, w, target = inputs()
    with pytest.raises(ValueError, match="scalar"):
        linear_loss(x, w, target, lambda head, block: head.logp)
