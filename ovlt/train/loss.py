"""The losses, as plain functions of the log-probs of the rows that carry loss.

Each is a weighted sum over rows. ``PackedBatch.loss_weight`` already holds the aggregation and the
normaliser of the whole optimizer step (``loss_weights``), so micro-batches and ranks are *summed*,
never averaged, and the sum does not depend on how the samples were split. Rows of weight 0 (filler)
change nothing, even if their numbers are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ovlt.model.objective import LossOutput, Objective

if TYPE_CHECKING:
    from ovlt.config import LossConfig
    from ovlt.model.batch import PackedBatch
    from ovlt_kernels.head import HeadOutput

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: finite, so that no gradient becomes 0 * inf = NaN
MAX_K3 = 10.0  # where the released recipe caps k3 (EasyR1, low_var_kl)


def cross_entropy(head: HeadOutput, batch: PackedBatch) -> LossOutput:
    """SFT: ``-sum_t loss_weight_t logp_t``.

    ``sums``: tokens, nll (nats), entropy (nats).
    """
    rows = _Rows(batch)
    logp = rows.kept(head.logp)  # [R]
    sums = {
        "tokens": _sum(rows.active),
        "nll": _sum(-logp),
        "entropy": _sum(rows.kept(head.entropy)),
    }
    return LossOutput(-(rows.weight * logp).sum(), sums)


def policy_loss(head: HeadOutput, batch: PackedBatch, config: LossConfig) -> LossOutput:
    """GRPO and its relatives: ``sum_t loss_weight_t L_t`` with, for each response token,

        L = -w * A * bounded(ratio) + kl_coef * KL - entropy_coef * entropy

    ratio
        ``exp(logp - old_logp)`` per token (PPO, arXiv 1707.06347), or its geometric mean over the
        response, through which the gradient flows to all its tokens (GSPO, arXiv 2507.18071, whose
        objective takes aggregation = sequence_mean). Without ``old_logp``
        the weights are those of the first update, and the ratio is 1 with its gradient.
    bounded
        for A > 0: at most ``1 + clip_high``; for A < 0: at least ``1 - clip_low`` and at most
        ``dual_clip`` (arXiv 1912.09729). That is ``min(ratio A, clip(ratio) A)``, and for A < 0 the
        larger of it and ``dual_clip A``, with A factored out.
    w
        ``exp(old_logp - engine_logp)``, without gradient: the sampling engine's probabilities are
        not the trainer's. ``truncate``: at most ``importance_cap``; ``mask``: 0 above it. It
        multiplies the policy term only.
    KL
        to the reference, see :func:`kl_penalty`.

    Args:
        head: log-prob and entropy (nats), ``[R]`` each.
        batch: needs ``advantage``; ``engine_logp`` None means no correction; ``ref_logp`` is needed
            if ``kl_coef > 0``. The rows of one sample must be in one batch.
        config: the variant, [grpo.loss].

    Returns:
        ``sums``: tokens, entropy, kl_ref (as estimated); clip_low, clip_high, dual_clip (see
        ``_clipped``); is_truncated: tokens whose ``w`` is above the cap; mismatch_kl: KL(engine ||
        trainer) by k3; mismatch_abs: |old_logp - engine_logp|. ``maxima``: mismatch_max, the
        largest of the latter; ratio_dev, the largest |ratio - 1|.

    Raises:
        ValueError: no advantage, or no reference log-probs although the KL needs them.
    """
    if batch.advantage is None:
        raise ValueError("batch.advantage is None: compute the advantages before packing.")
    if config.kl_coef > 0 and batch.ref_logp is None:
        raise ValueError(
            "batch.ref_logp is None but loss.kl_coef > 0: run the reference pass first, "
            "or set loss.kl_coef = 0."
        )
    rows = _Rows(batch)
    logp = rows.kept(head.logp)  # [R], with gradient
    # One update per rollout: the weights are those before the update, the ratio is 1, and its
    # gradient is that of logp.
    old_logp = logp.detach() if batch.old_logp is None else rows.kept(batch.old_logp)  # [R]
    advantage = rows.kept(batch.advantage)  # [R], the same for all rows of a sample

    # Ratio: per token (PPO), or the geometric mean over the response (GSPO).
    log_ratio = logp - old_logp
    if config.ratio == "sequence":
        log_ratio = _sample_mean(log_ratio, rows.active, batch)
    ratio = _exp(log_ratio)  # [R]

    # Clip: a bound on one side only, so that a ratio on the wrong side keeps its gradient. For
    # A < 0 an unbounded ratio could make one token's loss arbitrarily large: dual_clip bounds it.
    ceiling = config.dual_clip or None
    bounded = torch.where(
        advantage > 0,
        ratio.clamp(max=1 + config.clip_high),
        ratio.clamp(min=1 - config.clip_low, max=ceiling),
    )

    per_token = -bounded * advantage  # [R]

    # Correction: the engine sampled, the trainer differentiates; the weight corrects
    # the difference of their probabilities. Capped, because a rare large weight ruins a step.
    mismatch = torch.zeros_like(old_logp)
    above_cap = torch.zeros_like(rows.active)
    if batch.engine_logp is not None:
        mismatch = old_logp - rows.kept(batch.engine_logp)
        if config.importance != "off":
            importance = _exp(mismatch)
            above_cap = rows.active & (importance > config.importance_cap)
            capped = config.importance_cap if config.importance == "truncate" else 0.0
            per_token = per_token * importance.masked_fill(above_cap, capped)

    # KL to the reference, and an entropy bonus: neither is corrected or clipped.
    kl = torch.zeros_like(logp)
    if batch.ref_logp is not None:
        kl = kl_penalty(logp, rows.kept(batch.ref_logp), config.kl_estimator)
    if config.kl_coef > 0:
        per_token = per_token + config.kl_coef * kl
    entropy = rows.kept(head.entropy)
    if config.entropy_coef != 0:
        per_token = per_token - config.entropy_coef * entropy

    sums = {"tokens": rows.active, "entropy": entropy, "kl_ref": kl, "is_truncated": above_cap}
    sums |= _clipped(ratio.detach(), advantage, config)
    sums |= {"mismatch_kl": _k3(mismatch), "mismatch_abs": mismatch.abs()}
    deviation = rows.kept(ratio.detach() - 1).abs()
    maxima = {"mismatch_max": mismatch.abs(), "ratio_dev": deviation}
    return LossOutput(
        (rows.weight * per_token).sum(),
        {name: _sum(value) for name, value in sums.items()},
        {name: _largest(value) for name, value in maxima.items()},
    )


def _clipped(ratio: Tensor, advantage: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """The tokens whose ratio is clipped, bool ``[R]`` each; they give no policy gradient."""
    return {
        "clip_low": (advantage < 0) & (ratio < 1 - config.clip_low),
        "clip_high": (advantage > 0) & (ratio > 1 + config.clip_high),
        "dual_clip": (advantage < 0) & (ratio > (config.dual_clip or torch.inf)),
    }


CROSS_ENTROPY = Objective(cross_entropy, by_row=True)


def policy_objective(config: LossConfig) -> Objective:
    """Return :func:`policy_loss` with its configuration, as the model's forward takes it.

    One ratio per response ties the rows of a sample together, so only a loss with a ratio per token
    is a sum over rows.
    """
    return Objective(partial(policy_loss, config=config), by_row=config.ratio == "token")


def kl_penalty(logp: Tensor, ref_logp: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(policy || reference) of each sampled token, ``[R]``, by Schulman's estimators.

    With d = logp - ref_logp, and tokens sampled from the policy:

    k1: value d, unbiased. Its own gradient has mean zero, since the mean of ``grad logp``
        is 0. So its gradient here is ``d grad logp``, whose mean is the gradient of
        the KL: that of k2.
    k2: value d^2 / 2, biased; gradient ``d grad logp``, whose mean is the gradient of the KL.
    k3: value ``exp(-d) - 1 + d``, unbiased and never negative (GRPO, arXiv 2402.03300, eq. 4). The
        mean of its gradient is that of KL(reference || policy), the other direction, which agrees
        to first order if the two are close. As in the released recipe the value stops at 10, so
        a token that lost 2.6 nats against the reference (or gained 11) is pulled back no more.

    See http://joschu.net/blog/kl-approx.html and arXiv 2506.09477 (on the gradients).
    """
    d = logp - ref_logp  # [R]
    if estimator == "k1":
        k2 = d.square() / 2
        return d.detach() + (k2 - k2.detach())  # the value of k1, the gradient of k2
    if estimator == "k2":
        return d.square() / 2
    return _k3(-d).clamp(max=MAX_K3)


def loss_weights(
    lengths: Sequence[int],
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"],
    max_response_tokens: int = 0,
) -> list[float]:
    """The weight of one token of each sample, ``PackedBatch.loss_weight``.

    token_mean: 1 / all tokens (DAPO, arXiv 2503.14476, section 3.3). sequence_mean: 1 / (samples x
    tokens of this sample) (GRPO, arXiv 2402.03300). constant_length: 1 / (samples x
    max_response_tokens) (Dr. GRPO, arXiv 2503.20783).

    Args:
        lengths: response tokens of *every* sample of the optimizer step, all ranks together.
        aggregation: how the tokens are averaged.
        max_response_tokens: for constant_length only.

    Returns:
        One float per sample; 0.0 for a sample without tokens, which does not count.

    Raises:
        ValueError: a negative length; constant_length without its constant; an unknown name.
    """
    if any(length < 0 for length in lengths):
        raise ValueError(f"lengths must be >= 0, not {min(lengths)}.")
    samples = sum(length > 0 for length in lengths)
    if aggregation == "token_mean":
        return [1 / sum(lengths) if length else 0.0 for length in lengths]
    if aggregation == "sequence_mean":
        return [1 / (samples * length) if length else 0.0 for length in lengths]
    if aggregation == "constant_length":
        if max_response_tokens < 1:
            raise ValueError("aggregation 'constant_length' needs max_response_tokens >= 1.")
        return [1 / (samples * max_response_tokens) if length else 0.0 for length in lengths]
    raise ValueError(
        f"unknown aggregation {aggregation!r}: use token_mean, sequence_mean or constant_length."
    )


class _Rows:
    """The rows that count: those with a loss weight."""

    def __init__(self, batch: PackedBatch) -> None:
        self.weight = batch.loss_weight  # float32 [R]
        self.active = batch.loss_weight != 0  # bool [R]

    def kept(self, value: Tensor) -> Tensor:
        """Return ``value`` [R] with 0 in the other rows: 0 times a NaN there would be NaN."""
        return torch.where(self.active, value, 0.0)


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _k3(log_ratio: Tensor) -> Tensor:
    """Estimate KL(q || p) from samples of q; ``log_ratio`` is log p - log q. Never negative."""
    return _exp(log_ratio) - 1 - log_ratio


def _sample_mean(value: Tensor, active: Tensor, batch: PackedBatch) -> Tensor:
    """Mean over the active rows of each sample, given back to each of its rows, ``[R]``."""
    zeros = value.new_zeros(batch.num_samples)  # [S]
    total = zeros.index_add(0, batch.sample_ids, value)  # [S]
    count = zeros.index_add(0, batch.sample_ids, active.to(value.dtype))  # [S]
    return (total / count.clamp(min=1)).index_select(0, batch.sample_ids)


def _sum(value: Tensor) -> Tensor:
    return value.detach().sum(dtype=torch.float64)


def _largest(value: Tensor) -> Tensor:
    """Return the largest of values that are >= 0; 0 if there are none."""
    wide = value.detach().double()
    return wide.max() if wide.numel() else wide.new_zeros(())
