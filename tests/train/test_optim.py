from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from ovlt.config import OptimConfig, SftOptimConfig
from ovlt.system.runtime import leave
from ovlt.train.optim import build_adamw, clip_gradients, learning_rate, set_lr

CONFIG = OptimConfig(lr=0.1, weight_decay=0.5, max_grad_norm=0.3)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 5))


def backward(model: nn.Module, scale: float = 1.0) -> None:
    (model(torch.arange(9)).square().sum() * scale).backward()


def test_decay_is_for_matrices_and_not_for_gains_and_biases() -> None:
    """With gradients of zero AdamW moves a parameter by its decay alone."""
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_adamw(model, CONFIG)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_step_is_that_of_plain_adamw() -> None:
    config = OptimConfig(lr=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.0)
    ours, plain = make_model(), make_model()
    optimizer = build_adamw(ours, config)
    expected = torch.optim.AdamW(
        plain.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.0, foreach=False
    )
    for _ in range(3):
        for model, each in ((ours, optimizer), (plain, expected)):
            each.zero_grad()
            backward(model)
            each.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_frozen_parameters_are_left_out() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    held = [p for group in build_adamw(model, CONFIG).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model[1:].parameters()}
    with pytest.raises(ValueError, match="unfreeze"):
        build_adamw(model.requires_grad_(False), CONFIG)


def test_set_lr_reaches_every_group() -> None:
    optimizer = build_adamw(make_model(), CONFIG)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_constant_rate_after_warmup() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4)
    rates = [learning_rate(step, 9, config) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("linear", 0.55), ("cosine", 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)],
)
def test_schedules_fall_from_lr_to_the_least(schedule: str, middle: float) -> None:
    config = OptimConfig(lr=2.0, schedule=schedule, warmup_steps=3, min_lr_ratio=0.1)
    rates = [learning_rate(step, 14, config) for step in range(14)]
    assert rates[3] == 2.0
    assert rates[8] == pytest.approx(2 * middle)
    assert rates[13] == pytest.approx(0.2)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate(99, 14, config) == pytest.approx(0.2)


def test_cosine_is_flat_at_its_ends() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", min_lr_ratio=0.0)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert rates[1] == pytest.approx((1 + math.cos(math.pi / 100)) / 2)
    assert rates[25] == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_warmup_ratio_counts_only_without_warmup_steps() -> None:
    config = SftOptimConfig(lr=1.0)  # the released recipe: 0.1 of all steps, cosine
    assert learning_rate(9, 100, config) < 1.0
    assert learning_rate(10, 100, config) == 1.0
    config = SftOptimConfig(lr=1.0, warmup_steps=2)
    assert learning_rate(2, 100, config) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_short_runs_have_a_rate_above_zero(schedule: str) -> None:
    for total in (1, 2, 3):
        for warmup in (0, 1, 5):
            config = OptimConfig(lr=1.0, schedule=schedule, warmup_steps=warmup)
            assert all(0 < learning_rate(step, total, config) <= 1 for step in range(total))
    with pytest.raises(ValueError, match="total_steps"):
        learning_rate(0, 0, OptimConfig())
    with pytest.raises(ValueError, match="step"):
        learning_rate(-1, 3, OptimConfig())


def norm_of_gradients(model: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))


def test_clipping_scales_to_the_norm_and_returns_the_one_before() -> None:
    model = make_model()
    backward(model)
    before = norm_of_gradients(model)
    assert before > 1
    assert float(clip_gradients(model, 0.3)) == pytest.approx(before)
    assert norm_of_gradients(model) == pytest.approx(0.3, rel=1e-4)
    assert float(clip_gradients(model, 5.0)) == pytest.approx(0.3, rel=1e-4)
    assert norm_of_gradients(model) == pytest.approx(0.3, rel=1e-4)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    model = make_model()
    backward(model, math.inf)
    assert not math.isfinite(float(clip_gradients(model, 1.0)))


def _sharded_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        plain, model = make_model(), make_model()
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
        for each in (plain, model):
            optimizer = build_adamw(each, CONFIG)
            for _ in range(2):
                optimizer.zero_grad()
                backward(each)
                norm = float(clip_gradients(each, CONFIG.max_grad_norm))
                optimizer.step()
            if each is plain:
                expected = norm
        assert norm == pytest.approx(expected, rel=1e-5), (norm, expected)
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.full_tensor(), theirs.detach(), rtol=1e-5, atol=1e-6)
    finally:
        dist.destroy_process_group()
    leave()  # a failure has left by its exception, which mp.spawn reports


@pytest.mark.slow
def test_two_sharded_ranks_step_and_clip_as_one(tmp_path: Path) -> None:
    mp.spawn(_sharded_rank, (str(tmp_path),), nprocs=2)
