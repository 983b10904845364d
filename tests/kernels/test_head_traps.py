"""What implementations of this kind got wrong, seen in their issue trackers or measured."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from helpers.head_inputs import DEVICES, H, R, V, inputs
from torch import Tensor
from torch.distributed.tensor import Replicate, distribute_tensor

from ovlt_kernels.blocks import block_logits
from ovlt_kernels.extension import HAS_EXTENSION, WHY
from ovlt_kernels.head import HeadOptions, HeadOutput
from ovlt_kernels.linear_logp import linear_logp, linear_logp_reference
from ovlt_kernels.linear_loss import linear_loss, linear_loss_reference
from ovlt_kernels.row_logp import row_logp, row_logp_grad_

Result = tuple[Tensor, ...]


def objective(head: HeadOutput, rows: slice) -> Tensor:
    return (head.logp.exp() - 0.1 * head.entropy).sum()


def by_logp(x: Tensor, w: Tensor, target: Tensor, **chunk: int | None) -> Result:
    head = linear_logp(x, w, target, **chunk)
    loss = objective(head, slice(None))
    return loss.detach(), head.logp.detach(), *torch.autograd.grad(loss, (x, w))


def by_loss(x: Tensor, w: Tensor, target: Tensor, **chunk: int | None) -> Result:
    loss, head = linear_loss(x, w, target, objective, **chunk)
    return loss.detach(), head.logp, *torch.autograd.grad(loss, (x, w))


def plain(x: Tensor, w: Tensor, target: Tensor, dtype: torch.dtype | None = None) -> Result:
    x, w = (t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, w))
    loss, head = linear_loss_reference(x, w, target, objective)
    return loss.detach(), head.logp, *torch.autograd.grad(loss, (x, w))


def assert_as_exact_as_plain(got: Result, x: Tensor, w: Tensor, target: Tensor) -> None:
    exact = plain(x, w, target, torch.float64)
    for ours, theirs, want in zip(got, plain(x, w, target), exact, strict=True):
        assert (ours - want).norm() <= 2 * (theirs - want).norm() + 1e-6 * want.norm()


BOTH = pytest.mark.parametrize("run", [by_logp, by_loss])


@BOTH
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 7, 127, 128, 129])
@pytest.mark.parametrize("vocab", [1000, 32_769])
def test_sizes_at_the_edges_of_blocks(
    run: Callable[..., Result], device: str, rows: int, vocab: int
) -> None:
    x, w, target = inputs(rows, 8, vocab, torch.float32, device)
    target[0] = vocab - 1  # in the last, ragged part of a row
    # blocks of 128 rows, the last of one row; and a single one
    for chunk in (4 * vocab * 128, None):
        assert_as_exact_as_plain(run(x, w, target, chunk_bytes=chunk), x, w, target)


@BOTH
def test_the_published_vocabulary(run: Callable[..., Result]) -> None:
    x, w, target = inputs(3, 8, 151_936, torch.bfloat16)
    assert_as_exact_as_plain(run(x, w, target), x, w, target)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(d, marks=pytest.mark.skipif(d == "cpu" and not HAS_EXTENSION, reason=WHY))
        for d in DEVICES
    ],
)
@pytest.mark.slow
def test_more_than_two_to_the_31_logits(device: str) -> None:
    """Offsets that are counted in 32 bits wrap round here: 4.3 GB of logits, most of them zero."""
    vocab = 151_936
    rows = 2**31 // vocab + 2
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device=device)
    few, target = inputs(3, 2, vocab, torch.float32)[1].t()[:1].detach(), torch.tensor([vocab - 1])
    few, target = few.to(device, torch.bfloat16), target.to(device)
    logits[-1:] = few
    targets = torch.full((rows,), 5, device=device)
    targets[-1:] = target
    stats = row_logp(logits, targets)
    want = row_logp(few, target)
    for got, one in zip(stats, want, strict=True):
        assert torch.equal(got[-1:], one)
        assert torch.equal(got[:1], got[-2:-1])
    g = torch.zeros(rows, device=device)
    g[-1] = 1.0
    last = row_logp_grad_(logits, targets, stats, g)[-1:]
    assert torch.equal(last, row_logp_grad_(few, target, want, g[-1:]))
    assert not logits[-2].any()


@BOTH
def test_the_loss_of_many_blocks_is_not_summed_in_the_dtype_of_the_inputs(
    run: Callable[..., Result],
) -> None:
    x, w, target = inputs(256, 8, 37, torch.bfloat16)
    options = HeadOptions(logits_dtype=torch.bfloat16)
    wide = linear_logp_reference(x.float(), w.float(), target, options)
    want = objective(wide, slice(None)).detach()
    for rows in (256, 1):
        loss = run(x, w, target, chunk_bytes=4 * 37 * rows)[0]
        assert loss.dtype == torch.float32
        assert abs(loss - want) <= 1e-4 * want.abs()


@BOTH
@pytest.mark.parametrize("device", DEVICES)
def test_expanded_and_unaligned_inputs(run: Callable[..., Result], device: str) -> None:
    x, w, target = inputs(R, H, V, torch.float32, device)
    one_row = x.detach()[:1].expand(R, H).requires_grad_()
    same = x.detach()[:1].repeat(R, 1).requires_grad_()
    for got, want in zip(run(one_row, w, target), run(same, w, target), strict=True):
        torch.testing.assert_close(got, want)
    buffer = torch.zeros(R * H + 1, device=device)
    odd = buffer[1:].view(R, H).copy_(x.detach()).requires_grad_()  # 4 bytes off any alignment
    for got, want in zip(run(odd, w, target), run(x, w, target), strict=True):
        torch.testing.assert_close(got, want)
    column = torch.stack([target, target], 1)[:, 0]  # every other id
    for got, want in zip(run(x, w, column), run(x, w, target), strict=True):
        assert torch.equal(got, want)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(run: Callable[..., Result], dtype: torch.dtype) -> None:
    x, w, target = inputs(dtype=dtype)
    want = run(x, w, target)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(x, w, target)  # backward inside it as well
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="same floating"):
        run(x.float(), w.bfloat16(), target)


@BOTH
@pytest.mark.parametrize("grad", [True, False])
def test_one_block_of_logits_at_a_time(
    run: Callable[..., Result], grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lives while the next is made doubles the memory, and no number would show it."""
    blocks: list[weakref.ref[Tensor]] = []

    def watched(*arguments: object) -> Tensor:
        assert all(block() is None for block in blocks)
        made = block_logits(*arguments)
        blocks.append(weakref.ref(made))
        return made

    for module in ("linear_logp", "linear_loss"):
        monkeypatch.setattr(f"ovlt_kernels.{module}.block_logits", watched)
    x, w, target = inputs(dtype=torch.float32)
    if grad:
        run(x, w, target, chunk_bytes=4 * V * 3)
    else:
        with torch.no_grad():
            linear_logp(x, w, target, chunk_bytes=4 * V * 3)
            linear_loss(x, w, target, objective, chunk_bytes=4 * V * 3)
    assert len(blocks) >= 5


@BOTH
@pytest.mark.parametrize("device", DEVICES)
def test_two_runs_give_the_same_bits(run: Callable[..., Result], device: str) -> None:
    x, w, target = inputs(129, 17, 1003, torch.bfloat16, device)
    first = run(x, w, target, chunk_bytes=4 * 1003 * 32)
    again = run(x, w, target, chunk_bytes=4 * 1003 * 32)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@BOTH
def test_a_function_that_torch_compile_has_seen(run: Callable[..., Result]) -> None:
    """Traced or left alone, the numbers stay: rows without gradient among them."""
    x, w, target = inputs(dtype=torch.float32)
    weight = torch.ones(R).index_fill(0, torch.tensor([0, 4, 12]), 0.0)

    def step(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
        if run is by_logp:
            return (linear_logp(2 * x, w, target).logp * weight).sum() / 3
        loss, _ = linear_loss(2 * x, w, target, lambda head, rows: (head.logp * weight[rows]).sum())
        return loss / 3

    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(2):
        got, want = compiled(x, w, target), step(x, w, target)
        torch.testing.assert_close(got, want)
        for a, b in zip(
            torch.autograd.grad(got, (x, w)), torch.autograd.grad(want, (x, w)), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_the_rollouts_log_prob_is_the_updates_own_bit_for_bit() -> None:
    """So the ratio of a first update is exactly 1."""
    x, w, target = inputs(129, 17, 1003, torch.bfloat16)
    options, size = HeadOptions(0.7, torch.bfloat16), 4 * 1003 * 64
    with torch.no_grad():
        old = linear_logp(x, w, target, options, chunk_bytes=size).logp
    ratios = []

    def note(head: HeadOutput, rows: slice) -> Tensor:
        ratio = (head.logp - old[rows]).exp()
        ratios.append(ratio.detach())
        return ratio.sum()

    linear_loss(x, w, target, note, options, chunk_bytes=size)
    assert torch.equal(torch.cat(ratios), torch.ones(129))


def test_only_a_head_that_learns_still_learns() -> None:
    """The hidden states frozen, the head not: its gradient must not be lost."""
    x, w, target = inputs(dtype=torch.float32)
    want = by_loss(x, w, target)[3]
    for function in (linear_logp, linear_loss):
        w.grad = None
        if function is linear_logp:
            objective(linear_logp(x.detach(), w, target), slice(None)).backward()
        else:
            linear_loss(x.detach(), w, target, objective)[0].backward()
        torch.testing.assert_close(w.grad, want)


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_sharded_head_outside_its_module_is_refused() -> None:
    x, w, target = inputs(dtype=torch.float32)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    sharded = distribute_tensor(w.detach(), mesh, [Replicate()])
    for function in (linear_logp, lambda *a: linear_loss(*a, objective)):
        with pytest.raises(ValueError, match="inside the forward of the FSDP root"):
            function(x, sharded, target)
