"""Every loss against its definition written token by token with Python floats."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ovlt.config import LossConfig
from ovlt.model.batch import PackedBatch
from ovlt.model.segments import Segments
from ovlt.train.loss import LossOutput, cross_entropy, kl_penalty, loss_weights, policy_loss
from ovlt_kernels.head import HeadOutput
from ovlt_kernels.linear_logp import linear_logp

LENGTHS = [5, 1, 9, 3, 7]
AGGREGATIONS = ["token_mean", "sequence_mean", "constant_length"]
VARIANTS = {
    "paper": {},
    "dapo": {"clip_high": 0.28, "dual_clip": 0, "kl_coef": 0},
    "gspo": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.04, "kl_coef": 0},
    "gspo with k1": {"ratio": "sequence", "kl_estimator": "k1", "kl_coef": 0.3},
    "k2, masked": {"kl_estimator": "k2", "kl_coef": 0.5, "importance": "mask"},
    "uncorrected, entropy": {"importance": "off", "entropy_coef": 0.1, "dual_clip": 1.5},
    "low cap": {"importance_cap": 0.9},
}


def make_batch(lengths: list[int], weights: list[float], seed: int = 0) -> PackedBatch:
    """Rows whose ratios, mismatches and advantages reach both sides of every bound."""
    rows = sum(lengths)
    generator = torch.Generator().manual_seed(seed)

    def rand(scale: float) -> Tensor:
        return torch.randn(rows, generator=generator, dtype=torch.float64) * scale

    owners = [sample for sample, length in enumerate(lengths) for _ in range(length)]
    sample_ids = torch.tensor(owners, dtype=torch.int64)
    advantage = torch.randn(len(lengths), generator=generator, dtype=torch.float64)[sample_ids]
    old = -rand(1.0).abs() - 0.5
    empty = torch.zeros(0, dtype=torch.int64)
    return PackedBatch(
        input_ids=empty,
        position_ids=empty.expand(3, 0),
        segments=Segments([1]),
        sample_ids=sample_ids,
        loss_index=torch.arange(rows),
        labels=torch.zeros(rows, dtype=torch.int64),
        loss_weight=torch.tensor(weights, dtype=torch.float64)[sample_ids],
        patches=None,
        feature_index=None,
        grid_thw=None,
        vision_plan=None,
        advantage=advantage,
        old_logp=old,
        engine_logp=old + rand(0.8),
        ref_logp=old + rand(1.5),
        num_samples=len(lengths),
    )


def make_head(batch: PackedBatch, seed: int = 1) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    rows = len(batch.loss_weight)
    step = torch.randn(rows, generator=generator, dtype=torch.float64) * 0.7
    entropy = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    logp = (batch.old_logp + step).requires_grad_()
    return HeadOutput(logp, entropy.requires_grad_(), torch.zeros(rows))


def by_hand(head: HeadOutput, batch: PackedBatch, config: LossConfig) -> dict[str, float]:
    """The definition, one token at a time; keys as in LossOutput, and 'loss'."""
    rows = (head.logp, head.entropy, batch.old_logp, batch.engine_logp, batch.ref_logp)
    logp, entropy, old, engine, ref = (t.tolist() for t in rows)
    samples = batch.sample_ids.tolist()
    names = "loss tokens entropy kl_ref clip_low clip_high dual_clip is_truncated mismatch_kl"
    out = dict.fromkeys([*names.split(), "mismatch_abs", "mismatch_max", "ratio_dev"], 0.0)
    for t, weight in enumerate(batch.loss_weight.tolist()):
        if weight == 0:
            continue
        ratio = math.exp(logp[t] - old[t])
        if config.ratio == "sequence":
            own = [u for u in range(len(logp)) if samples[u] == samples[t]]
            product = math.prod(math.exp(logp[u] - old[u]) for u in own)
            ratio = product ** (1 / len(own))
        a = float(batch.advantage[t])
        low, high = 1 - config.clip_low, 1 + config.clip_high
        objective = min(ratio * a, min(max(ratio, low), high) * a)
        out["clip_low"] += objective < ratio * a and ratio < low
        out["clip_high"] += objective < ratio * a and ratio > high
        if config.dual_clip and a < 0:
            out["dual_clip"] += config.dual_clip * a > objective
            objective = max(objective, config.dual_clip * a)
        gap = old[t] - engine[t]
        w = math.exp(gap)
        if config.importance == "off":
            w = 1.0
        elif w > config.importance_cap:
            out["is_truncated"] += 1
            w = config.importance_cap if config.importance == "truncate" else 0.0
        d = logp[t] - ref[t]
        kl = {"k1": d, "k2": d * d / 2, "k3": min(math.exp(-d) - 1 + d, 10.0)}[config.kl_estimator]
        per_token = -w * objective + config.kl_coef * kl - config.entropy_coef * entropy[t]
        out["loss"] += weight * per_token
        out["tokens"] += 1
        out["entropy"] += entropy[t]
        out["kl_ref"] += kl
        out["mismatch_kl"] += math.exp(gap) - 1 - gap
        out["mismatch_abs"] += abs(gap)
        out["mismatch_max"] = max(out["mismatch_max"], abs(gap))
        out["ratio_dev"] = max(out["ratio_dev"], abs(ratio - 1))
    return out


def flat(output: LossOutput) -> dict[str, float]:
    named = {"loss": output.loss.detach(), **output.sums, **output.maxima}
    return {name: float(value) for name, value in named.items()}


def test_defaults_are_the_papers() -> None:
    """The released configuration (EasyR1 v0.3.0 as OpenVLThinker runs it)."""
    config = LossConfig()
    assert (config.clip_low, config.clip_high, config.dual_clip) == (0.2, 0.3, 3.0)
    assert (config.kl_estimator, config.kl_coef) == ("k3", 1e-2)
    assert (config.ratio, config.aggregation, config.entropy_coef) == ("token", "token_mean", 0.0)
    assert (config.importance, config.importance_cap) == ("truncate", 2.0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_its_definition(variant: str, aggregation: str) -> None:
    config = LossConfig(aggregation=aggregation, **VARIANTS[variant])
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, aggregation, 11))
    head = make_head(batch)
    output = flat(policy_loss(head, batch, config))
    assert output == pytest.approx(by_hand(head, batch, config), rel=1e-10)


def test_the_random_rows_reach_every_bound() -> None:
    """Else the test above would show nothing."""
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, "token_mean"))
    output = flat(policy_loss(make_head(batch), batch, LossConfig(dual_clip=1.5)))
    names = ("clip_low", "clip_high", "dual_clip", "is_truncated")
    assert all(0 < output[name] < output["tokens"] for name in names)


def one_token(ratio: float, advantage: float, **config: object) -> tuple[float, float, LossOutput]:
    """Loss, d loss / d logp, and the whole output, of one token with no KL and no correction."""
    batch = make_batch([1], [1.0])
    batch.advantage = torch.tensor([advantage], dtype=torch.float64)
    batch.old_logp = torch.zeros(1, dtype=torch.float64)
    batch.engine_logp = batch.ref_logp = None
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    head = HeadOutput(logp, torch.zeros(1), torch.zeros(1))
    output = policy_loss(head, batch, LossConfig(kl_coef=0, **config))
    output.loss.backward()
    return float(output.loss.detach()), float(logp.grad), output


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "flag"),
    [
        (1.29, 2.0, -2.58, -2.58, None),
        (1.31, 2.0, -2.60, 0.0, "clip_high"),
        (0.50, 2.0, -1.00, -1.00, None),  # a good token that became rarer is not clipped
        (0.81, -2.0, 1.62, 1.62, None),
        (0.79, -2.0, 1.60, 0.0, "clip_low"),
        (1.50, -2.0, 3.00, 3.00, None),  # a bad token that became likelier is pushed back
        (2.99, -2.0, 5.98, 5.98, None),
        (3.01, -2.0, 6.00, 0.0, "dual_clip"),
        (3.01, 2.0, -2.60, 0.0, "clip_high"),
        (1.31, 0.0, 0.0, 0.0, None),
    ],
)
def test_sides_of_the_clips(
    ratio: float, advantage: float, loss: float, gradient: float, flag: str | None
) -> None:
    found, slope, output = one_token(ratio, advantage)
    assert found == pytest.approx(loss)
    assert slope == pytest.approx(gradient)
    flags = {name for name in ("clip_low", "clip_high", "dual_clip") if output.sums[name]}
    assert flags == ({flag} if flag else set())


def test_dual_clip_off_leaves_negative_advantages_unbounded() -> None:
    assert one_token(50.0, -2.0, dual_clip=0)[0] == pytest.approx(100.0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_absurd_ratio_gives_no_nan(advantage: float) -> None:
    batch = make_batch([1], [1.0])
    batch.advantage = torch.tensor([advantage])
    batch.old_logp = torch.tensor([-900.0])
    batch.engine_logp = batch.ref_logp = torch.tensor([-1800.0])
    logp = torch.tensor([-0.1], requires_grad=True)
    head = HeadOutput(logp, torch.zeros(1), torch.zeros(1))
    output = policy_loss(head, batch, LossConfig(dual_clip=0))
    output.loss.backward()
    assert all(math.isfinite(value) for value in flat(output).values())
    assert logp.grad.isfinite().all()


def test_without_old_logp_the_ratio_is_one_and_the_gradient_is_reinforce() -> None:
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, "token_mean"))
    head = make_head(batch)
    batch.old_logp = batch.engine_logp = None
    for ratio in ("token", "sequence"):
        output = policy_loss(head, batch, LossConfig(kl_coef=0, ratio=ratio))
        assert flat(output)["ratio_dev"] == 0
        (gradient,) = torch.autograd.grad(output.loss, head.logp)
        torch.testing.assert_close(gradient, -batch.loss_weight * batch.advantage)


def test_first_update_corrects_towards_its_own_logp_without_gradient() -> None:
    """w = exp(logp - engine) is a constant: the gradient is -w A weight, capped."""
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, "token_mean"))
    head = make_head(batch)
    batch.old_logp = None
    output = policy_loss(head, batch, LossConfig(kl_coef=0))
    (gradient,) = torch.autograd.grad(output.loss, head.logp)
    w = (head.logp - batch.engine_logp).exp().clamp(max=2).detach()
    torch.testing.assert_close(gradient, -batch.loss_weight * batch.advantage * w)
    assert 0 < flat(output)["is_truncated"] < len(w)


def test_gspo_gradient_is_that_of_its_objective() -> None:
    """(1/G) sum_i min(s_i A_i, clip(s_i) A_i), differentiated by autograd, sample by sample."""
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, "sequence_mean"))
    batch.engine_logp = None
    head = make_head(batch)
    config = LossConfig(ratio="sequence", kl_coef=0, dual_clip=0, clip_low=0.05, clip_high=0.04)
    output = policy_loss(head, batch, config)
    (gradient,) = torch.autograd.grad(output.loss, head.logp)
    objective = torch.zeros((), dtype=torch.float64)
    for sample in range(len(LENGTHS)):
        own = batch.sample_ids == sample
        s = (head.logp[own] - batch.old_logp[own]).mean().exp()
        a = batch.advantage[own][0]
        objective = objective + torch.minimum(s * a, s.clamp(0.95, 1.04) * a) / len(LENGTHS)
    (expected,) = torch.autograd.grad(-objective, head.logp)
    assert float(output.loss.detach()) == pytest.approx(-float(objective.detach()))
    torch.testing.assert_close(gradient, expected)
    assert (gradient == 0).any()
    assert (gradient != 0).any()


def take(batch: PackedBatch, head: HeadOutput, chosen: list[int]) -> tuple[PackedBatch, Tensor]:
    """A micro-batch of some samples, and which rows of the whole it holds."""
    rows = torch.cat([(batch.sample_ids == sample).nonzero()[:, 0] for sample in chosen])
    part = make_batch([LENGTHS[sample] for sample in chosen], [0.0] * len(chosen))
    for name in ("loss_weight", "advantage", "old_logp", "engine_logp", "ref_logp"):
        setattr(part, name, getattr(batch, name)[rows])
    return part, rows


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", [[[3], [0, 4], [2, 1]], [[0], [1], [2], [3], [4]]])
def test_splitting_over_micro_batches_changes_nothing(
    variant: str, aggregation: str, split: list[list[int]]
) -> None:
    config = LossConfig(aggregation=aggregation, **VARIANTS[variant])
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, aggregation, 11))
    head = make_head(batch)
    whole = policy_loss(head, batch, config)
    (expected,) = torch.autograd.grad(whole.loss, head.logp)
    parts = []
    for chosen in split:
        part, rows = take(batch, head, chosen)
        parts.append(policy_loss(HeadOutput(*(t[rows] for t in head)), part, config))
    loss = torch.stack([part.loss for part in parts]).sum()
    (gradient,) = torch.autograd.grad(loss, head.logp)
    torch.testing.assert_close(loss, whole.loss)
    torch.testing.assert_close(gradient, expected)
    for name, total in whole.sums.items():
        assert sum(float(part.sums[name]) for part in parts) == pytest.approx(float(total))
    for name, largest in whole.maxima.items():
        assert max(float(part.maxima[name]) for part in parts) == float(largest)


@pytest.mark.parametrize("variant", VARIANTS)
def test_filler_rows_are_nothing_even_as_nan(variant: str) -> None:
    """Also a filler sample between others, and a cap below 1, which a weight of 1 exceeds."""
    config = LossConfig(**VARIANTS[variant])
    weights = loss_weights(LENGTHS, "token_mean")
    batch, clean = make_batch(LENGTHS, weights), make_batch(LENGTHS, weights)
    head, clean_head = make_head(batch), make_head(batch)
    filler = batch.sample_ids == 2
    for part in (batch, clean):
        part.loss_weight = part.loss_weight.masked_fill(filler, 0.0)
    for name in ("advantage", "old_logp", "engine_logp", "ref_logp"):
        setattr(batch, name, getattr(batch, name).masked_fill(filler, math.nan))
    with torch.no_grad():
        head.logp[filler] = math.nan
        head.entropy[filler] = math.nan
    output, expected = policy_loss(head, batch, config), policy_loss(clean_head, clean, config)
    assert flat(output) == flat(expected)
    assert flat(output) == pytest.approx(by_hand(clean_head, clean, config), rel=1e-10)
    assert float(output.sums["tokens"]) == sum(LENGTHS) - 9
    output.loss.backward()
    expected.loss.backward()
    assert torch.equal(head.logp.grad, clean_head.logp.grad)
    assert (head.logp.grad[filler] == 0).all()


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("rows", [0, 4])
def test_a_batch_of_filler_runs_backward(ratio: str, rows: int) -> None:
    """Through the head: a rank that has nothing to learn still takes part in every collective."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator, requires_grad=True)
    w = torch.randn(5, 3, generator=generator, requires_grad=True)
    batch = make_batch([rows] if rows else [], [0.0] if rows else [])
    head = linear_logp(x, w, batch.labels)
    for output in (policy_loss(head, batch, LossConfig(ratio=ratio)), cross_entropy(head, batch)):
        output.loss.backward(retain_graph=True)
        assert set(flat(output).values()) == {0.0}
        assert (w.grad == 0).all()
        assert (x.grad == 0).all()


def test_cross_entropy_is_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(25, 6, generator=generator, requires_grad=True)
    w = torch.randn(17, 6, generator=generator, requires_grad=True)
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, "token_mean"))
    batch.labels = torch.randint(0, 17, (25,), generator=generator)
    output = cross_entropy(linear_logp(x, w, batch.labels), batch)
    expected = torch.nn.functional.cross_entropy(x @ w.t(), batch.labels)
    torch.testing.assert_close(output.loss, expected.double())
    ours = torch.autograd.grad(output.loss, (x, w))
    for mine, theirs in zip(ours, torch.autograd.grad(expected, (x, w)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert float(output.sums["tokens"]) == 25
    assert float(output.sums["nll"]) / 25 == pytest.approx(float(expected.detach()), rel=1e-5)
    assert set(output.sums) == {"tokens", "nll", "entropy"}


def test_missing_inputs_are_explained() -> None:
    batch = make_batch(LENGTHS, loss_weights(LENGTHS, "token_mean"))
    head = make_head(batch)
    batch.ref_logp = None
    with pytest.raises(ValueError, match=r"kl_coef = 0"):
        policy_loss(head, batch, LossConfig())
    assert flat(policy_loss(head, batch, LossConfig(kl_coef=0)))["kl_ref"] == 0
    batch.advantage = None
    with pytest.raises(ValueError, match="advantage"):
        policy_loss(head, batch, LossConfig(kl_coef=0))


def policy_and_reference(same: bool) -> tuple[Tensor, Tensor]:
    """Logits of a policy over seven tokens, and log-probs of a reference."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    other = logits.detach() if same else torch.randn(7, generator=generator, dtype=torch.float64)
    return logits, other.log_softmax(0)


def expectation(estimator: str, logits: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean under the policy of the estimator, and of its gradient in the logits."""
    logp = logits.log_softmax(0)
    p = logp.detach().exp()
    value = (p * kl_penalty(logp, ref, estimator)).sum()  # p has no gradient, as sampled tokens
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    logits, ref = policy_and_reference(same=False)
    logp = logits.detach().log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum()
    assert kl > 0.1
    torch.testing.assert_close(expectation("k1", logits, ref)[0], kl)
    torch.testing.assert_close(expectation("k3", logits, ref)[0], kl)
    assert (expectation("k2", logits, ref)[0] - kl).abs() > 1e-2


def test_mean_gradients_of_the_estimators() -> None:
    """k1, k2: that of KL(policy || reference). k3: that of KL(reference || policy)."""
    logits, ref = policy_and_reference(same=False)
    logp = logits.log_softmax(0)
    (reverse,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), logits)
    torch.testing.assert_close(expectation("k1", logits, ref)[1], reverse)
    torch.testing.assert_close(expectation("k2", logits, ref)[1], reverse)
    torch.testing.assert_close(expectation("k3", logits, ref)[1], forward)
    assert (forward - reverse).abs().max() > 1e-2


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_at_the_reference_no_token_is_pulled(estimator: str) -> None:
    logp = torch.tensor([-0.3, -2.0, -9.0], dtype=torch.float64, requires_grad=True)
    kl = kl_penalty(logp, logp.detach().clone(), estimator)
    kl.sum().backward()
    assert kl.tolist() == [0.0] * 3
    assert logp.grad.tolist() == [0.0] * 3


def test_k3_is_capped_where_the_released_recipe_caps_it() -> None:
    logp = torch.tensor([-2.0, -4.0, -700.0], requires_grad=True)
    kl = kl_penalty(logp, torch.tensor([0.0, -1.0, -1.0]), "k3")
    kl.sum().backward()
    assert kl.tolist() == pytest.approx([math.exp(2) - 3, 10.0, 10.0])
    assert logp.grad.tolist() == pytest.approx([1 - math.exp(2), 0.0, 0.0])


def test_loss_weights_are_the_three_means() -> None:
    lengths = [3, 1, 0, 6]
    values = [[1.0, 2.0, 6.0], [5.0], [], [1.0, 0.0, 0.0, 0.0, 2.0, 9.0]]
    tokens = list(itertools.chain(*values))
    present = [v for v in values if v]
    expected = {
        "token_mean": sum(tokens) / 10,
        "sequence_mean": sum(sum(v) / len(v) for v in present) / 3,
        "constant_length": sum(tokens) / (3 * 8),
    }
    for aggregation, mean in expected.items():
        weights = loss_weights(lengths, aggregation, 8)
        assert sum(w * sum(v) for w, v in zip(weights, values, strict=True)) == pytest.approx(mean)
        assert weights[2] == 0.0


def test_loss_weights_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="max_response_tokens"):
        loss_weights([3], "constant_length")
    with pytest.raises(ValueError, match="lengths"):
        loss_weights([3, -1], "token_mean")
    with pytest.raises(ValueError, match="unknown aggregation"):
        loss_weights([3], "mean")
    assert loss_weights([], "token_mean") == []


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.get("ratio") != "sequence"])
def test_a_token_level_loss_is_the_sum_over_blocks_of_its_rows(name: str) -> None:
    """What ``Objective.by_row`` relies on: the gradient of a block needs no other block."""
    weights = loss_weights(LENGTHS, "sequence_mean")
    batch, config = make_batch(LENGTHS, weights), LossConfig(**VARIANTS[name])
    head = make_head(batch)
    inputs = (head.logp, head.entropy)

    def loss_and_gradients(blocks: list[slice]) -> tuple[Tensor, ...]:
        parts = [(HeadOutput(*(value[b] for value in head)), batch.loss_rows(b)) for b in blocks]
        loss = torch.stack([policy_loss(*part, config).loss for part in parts]).sum()
        return loss, *torch.autograd.grad(loss, inputs, materialize_grads=True)

    whole = loss_and_gradients([slice(None)])
    parts = loss_and_gradients([slice(0, 4), slice(4, 5), slice(5, 17), slice(17, None)])
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert batch.loss_rows(slice(5, 17)).sample_ids.tolist() == [1] + [2] * 9 + [3] * 2
