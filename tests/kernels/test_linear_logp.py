"""linear_logp against its plain statement, against numbers by hand, and on hostile rows."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.head_inputs import DEVICES, H, R, V, inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ovlt_kernels.head import HeadOptions, HeadOutput
from ovlt_kernels.linear_logp import linear_logp, linear_logp_reference

PER_ROW = torch.linspace(0.5, 1.9, R, dtype=torch.float64)


def upstream(rows: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(2, rows, generator=generator, dtype=torch.float64).to(device)
    return g[0], g[1]


def pull(output: HeadOutput, g: Tensor, h: Tensor) -> Tensor:
    return (output.logp * g).sum() + (output.entropy * h).sum()


def gradients(output: HeadOutput, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(pull(output, *upstream(len(x), str(x.device))), (x, w))


def test_values_are_those_of_the_definition() -> None:
    """Independent of both implementations: a softmax written out with Python floats."""
    x, w, target = inputs(3, 2, 5)
    x, w = x.detach(), w.detach()
    output = linear_logp(x, w, target, HeadOptions(0.6, banned_ids=torch.tensor([1])))
    for row in range(3):
        z = [float(x[row] @ w[v]) / 0.6 for v in range(5) if v != 1]
        total = sum(math.exp(value) for value in z)
        p = [math.exp(value) / total for value in z]
        logp = float(x[row] @ w[target[row]]) / 0.6 - math.log(total)
        assert output.lse[row].item() == pytest.approx(math.log(total), rel=1e-12)
        assert output.logp[row].item() == pytest.approx(logp, rel=1e-12)
        assert output.entropy[row].item() == pytest.approx(-sum(q * math.log(q) for q in p))


@pytest.mark.parametrize("temperature", [0.6, 1.0, PER_ROW])
@pytest.mark.parametrize("banned", [None, [0], [0, 2, 3]])
@pytest.mark.parametrize("rows_per_chunk", [1, 4, R, 1000])
def test_matches_the_reference_in_float64(
    temperature: float | Tensor, banned: list[int] | None, rows_per_chunk: int
) -> None:
    x, w, target = inputs()
    banned_ids = None if banned is None else torch.tensor(banned)
    options = HeadOptions(temperature, banned_ids=banned_ids)
    ours = linear_logp(x, w, target, options, chunk_bytes=4 * V * rows_per_chunk)
    plain = linear_logp_reference(x, w, target, options)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(ours, x, w), gradients(plain, x, w), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("banned", [None, torch.tensor([1, 3])])
def test_gradcheck(banned: Tensor | None) -> None:
    x, w, target = inputs(5, 3, 11)
    options = HeadOptions(1.3, banned_ids=banned)

    def outputs(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        result = linear_logp(x, w, target, options, chunk_bytes=4 * 22)
        return result.logp, result.entropy

    assert torch.autograd.gradcheck(outputs, (x, w))


@pytest.mark.parametrize("freeze", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_costs_no_product(freeze: str) -> None:
    x, w, target = inputs()
    full = gradients(linear_logp(x, w, target), x, w)
    (x if freeze == "hidden" else w).requires_grad_(False)
    loss = pull(linear_logp(x, w, target), *upstream(R))
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == 2 * (2 * R * H * V)  # logits again, and one gradient
    if freeze == "hidden":
        assert x.grad is None
        torch.testing.assert_close(w.grad, full[1])
    else:
        assert w.grad is None
        torch.testing.assert_close(x.grad, full[0])


@pytest.mark.parametrize("device", DEVICES)
def test_rows_without_gradient_are_not_multiplied_and_their_nan_stays_out(device: str) -> None:
    x, w, target = inputs(dtype=torch.float32, device=device)
    live = torch.tensor([1, 6, 7, 12], device=device)
    expected = torch.autograd.grad(linear_logp(x[live], w, target[live]).logp.sum(), (x, w))
    poisoned = torch.full_like(x, math.nan)
    poisoned[live] = x.detach()[live]
    poisoned.requires_grad_()
    g = torch.zeros(R, device=device).index_fill(0, live, 1.0)
    output = linear_logp(poisoned, w, target, chunk_bytes=4 * V * 3)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(output.logp, g)
    assert counter.get_total_flops() == 3 * (2 * 4 * H * V)
    torch.testing.assert_close(w.grad, expected[1])
    torch.testing.assert_close(poisoned.grad, expected[0])


def test_a_row_with_gradient_in_entropy_only_is_not_dropped() -> None:
    x, w, target = inputs()
    h = upstream(R)[1]
    for head in (linear_logp, linear_logp_reference):
        x.grad = None
        output = head(x, w, target)
        pull(output, torch.zeros(R, dtype=torch.float64), h).backward()
        if head is linear_logp:
            ours = x.grad
    torch.testing.assert_close(ours, x.grad, rtol=1e-11, atol=1e-12)


def test_nan_in_a_live_row_is_not_hidden() -> None:
    x, w, target = inputs(dtype=torch.float32)
    with torch.no_grad():
        x[3, 0] = math.nan
    output = linear_logp(x, w, target)
    assert output.logp.isnan().nonzero().flatten().tolist() == [3]
    output.logp.sum().backward()
    assert w.grad.isnan().any()


def test_entropy_without_gradient() -> None:
    x, w, target = inputs()
    output = linear_logp(x, w, target, entropy_grad=False)
    plain = linear_logp(x, w, target)
    assert not output.entropy.requires_grad
    assert not output.lse.requires_grad
    torch.testing.assert_close(output.entropy, plain.entropy.detach())
    torch.testing.assert_close(
        torch.autograd.grad(output.logp.sum(), x), torch.autograd.grad(plain.logp.sum(), x)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rows(device: str, dtype: torch.dtype) -> None:
    x, w, target = inputs(0, dtype=dtype, device=device)
    banned_ids = torch.tensor([1], device=device)
    output = linear_logp(x, w, target, HeadOptions(banned_ids=banned_ids))
    assert [tuple(t.shape) for t in output] == [(0,)] * 3
    (output.logp.sum() + output.entropy.sum()).backward()
    assert x.grad.shape == (0, H)
    assert w.grad.dtype == dtype
    assert (w.grad == 0).all()


def test_all_rows_dropped_keeps_the_graph() -> None:
    x, w, target = inputs(dtype=torch.float32)
    (linear_logp(x, w, target).logp * 0.0).sum().backward()
    assert (x.grad == 0).all()
    assert (w.grad == 0).all()


def test_backward_twice_gives_the_same_and_second_derivatives_are_refused() -> None:
    x, w, target = inputs()
    loss = pull(linear_logp(x, w, target), *upstream(R))
    first = torch.autograd.grad(loss, (x, w), retain_graph=True)
    second = torch.autograd.grad(loss, (x, w), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    squared = linear_logp(x, w, target).logp.square().sum()
    (once,) = torch.autograd.grad(squared, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


def error(value: Tensor, exact: Tensor) -> float:
    exact = exact.detach()
    return float((value.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("logits_dtype", [None, torch.bfloat16, torch.float32])
def test_bfloat16_errs_at_most_twice_what_plain_pytorch_does(
    device: str, logits_dtype: torch.dtype | None
) -> None:
    x, w, target = inputs(257, 65, 1003, torch.bfloat16, device, scale=0.6)
    exact_x, exact_w = (t.detach().double().requires_grad_() for t in (x, w))
    exact = linear_logp_reference(exact_x, exact_w, target, HeadOptions(1.3))
    exact_grads = gradients(exact, exact_x, exact_w)
    options = HeadOptions(1.3, logits_dtype)
    plain = linear_logp_reference(x, w, target, options)
    ours = linear_logp(x, w, target, options, chunk_bytes=99999)
    assert ours.logp.dtype == ours.entropy.dtype == torch.float32
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert error(mine, truth) <= 2 * error(theirs, truth) + 1e-6
    for mine, theirs, truth in zip(
        gradients(ours, x, w), gradients(plain, x, w), exact_grads, strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert error(mine, truth) <= 2 * error(theirs, truth)


@pytest.mark.parametrize("device", DEVICES)
def test_logits_dtype_decides_about_rounding(device: str) -> None:
    """Ids near 12 nats: bfloat16 logits move a log-prob by 1e-2, float32 ones by 1e-6."""
    x, w, target = inputs(64, 65, 501, torch.float32, device)
    rounded = (x @ w.t()).to(torch.bfloat16).float() / 0.6
    expected = rounded.log_softmax(-1).gather(1, target[:, None])[:, 0]
    as_engine = linear_logp(x, w, target, HeadOptions(0.6, torch.bfloat16)).logp
    # Another order of summation moves a few logits over a rounding edge, so not every row agrees.
    assert ((as_engine - expected).abs() < 1e-4).float().mean() > 0.9
    exact = linear_logp_reference(x.double(), w.double(), target, HeadOptions(0.6)).logp
    assert (as_engine - exact).abs().max() > 1e-2

    half = [t.detach().bfloat16() for t in (x, w)]
    exact = linear_logp_reference(*(t.double() for t in half), target).logp
    unrounded = linear_logp(*half, target, HeadOptions(logits_dtype=torch.float32)).logp
    assert (unrounded - exact).abs().max() < 1e-4
    rounded = linear_logp(*half, target, HeadOptions(logits_dtype=torch.bfloat16)).logp
    assert (rounded - exact).abs().max() > 5e-3


@pytest.mark.parametrize("device", DEVICES)
def test_weight_gradient_does_not_degrade_with_the_number_of_chunks(device: str) -> None:
    x, w, target = inputs(256, 17, 131, torch.bfloat16, device)
    exact_x, exact_w = (t.detach().double().requires_grad_() for t in (x, w))
    truth = gradients(linear_logp_reference(exact_x, exact_w, target), exact_x, exact_w)[1]
    errors = [
        error(gradients(linear_logp(x, w, target, chunk_bytes=4 * 131 * rows), x, w)[1], truth)
        for rows in (256, 64, 16, 1)
    ]
    assert max(errors) < 1.1 * min(errors)


def test_peaked_and_flat_rows() -> None:
    """Logits of 1e4: log-prob 0 or -1e4 and entropy 0, exactly; equal logits: entropy ln V."""
    w = torch.eye(5, requires_grad=True)
    x = torch.tensor([[1e4, 0, 0, 0, 0], [1e4, 0, 0, 0, 0], [0.0] * 5], requires_grad=True)
    output = linear_logp(x, w, torch.tensor([0, 1, 2]))
    assert output.logp.tolist() == [0.0, -1e4, pytest.approx(-math.log(5))]
    assert output.entropy.tolist() == [0.0, 0.0, pytest.approx(math.log(5))]
    (output.logp + output.entropy).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[1].tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0]


def test_float32_keeps_the_gradient_of_a_nearly_certain_token() -> None:
    """1 - p = 1e-6 is below the spacing of float32 at the log-sum-exp, from which p is formed."""
    w = torch.eye(2)
    x = torch.tensor([[13.5, 0.0]], requires_grad=True)
    linear_logp(x, w, torch.tensor([0])).logp.sum().backward()
    assert x.grad[0, 0].item() == pytest.approx(math.exp(-13.5), rel=0.1)


def test_log_probs_are_never_positive() -> None:
    x, w, _ = inputs(200, dtype=torch.float32, scale=20.0)
    output = linear_logp(x, w, (x @ w.t()).argmax(1))
    assert (output.logp <= 0).all()
    assert (output.entropy >= 0).all()


def test_inputs_of_any_stride() -> None:
    x, w, target = inputs()
    wide = torch.stack([x.detach(), x.detach() + 1], -1).requires_grad_()
    column = w.detach().t().contiguous().requires_grad_()
    output = linear_logp(wide[..., 0], column.t(), target.repeat_interleave(2)[::2])
    expected = linear_logp(x, w, target)
    torch.testing.assert_close(output.logp, expected.logp)
    loss = pull(output, *upstream(R))
    loss.backward()
    torch.testing.assert_close(column.grad, gradients(expected, x, w)[1].t())
    assert (wide.grad[..., 1] == 0).all()


def test_mistakes_are_explained() -> None:
    x, w, target = inputs(dtype=torch.float32)
    cases: list[tuple[str, tuple, dict]] = [
        (r"\[R, H\]", (x, w[:, 1:], target), {}),
        ("one id for each", (x, w, target[1:]), {}),
        ("same floating dtype", (x, w.double(), target), {}),
        ("must be int64", (x, w, target.int()), {}),
        ("-100 are no ids", (x, w, target.index_fill(0, torch.tensor([2]), -100)), {}),
        ("outside", (x, w, target.index_fill(0, torch.tensor([2]), V)), {}),
        ("banned id", (x, w, target), {"banned_ids": target[4:5]}),
        ("leave those out", (x, w, target), {"banned_ids": torch.tensor([V])}),
        ("banned_ids must be int64", (x, w, target), {"banned_ids": torch.tensor([0.0])}),
        ("temperature", (x, w, target), {"temperature": 0.0}),
        ("temperature", (x, w, target), {"temperature": math.nan}),
        ("not -1.0", (x, w, target), {"temperature": -PER_ROW / PER_ROW}),
        ("each of the 13 rows", (x, w, target), {"temperature": PER_ROW[1:]}),
        ("detach", (x, w, target), {"temperature": torch.ones(R, requires_grad=True)}),
        ("logits_dtype", (x, w, target), {"logits_dtype": torch.float64}),
        ("is on meta", (x, w.to("meta"), target), {}),
    ]
    for text, arguments, options in cases:
        with pytest.raises(ValueError, match=text):
            linear_logp(*arguments, HeadOptions(**options))
        with pytest.raises(ValueError, match=text):
            linear_logp_reference(*arguments, HeadOptions(**options))
    with pytest.raises(ValueError, match="chunk_bytes"):
        linear_logp(x, w, target, chunk_bytes=0)
