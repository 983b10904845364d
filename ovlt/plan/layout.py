"""How the samples of one update are laid out in micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ovlt.plan.run import Run, StageKind


@dataclass(frozen=True)
class Layout:
    """The micro-batches of one update, if every sample has the expected length."""

    samples: int  # of all ranks
    sample_tokens: int
    response_tokens: int
    budget: int  # tokens that a micro-batch may have
    per_micro_batch: int  # samples that fit
    micro_batches: int  # of each rank
    images: int  # of a full micro-batch, at most
    towers: int  # runs of the tower for one image: the parts that its group is split into


def layout(run: Run, kind: StageKind) -> Layout:
    """Lay out samples of equal length as ``ovlt.train.pack.plan`` does.

    Raises ValueError if a sample is longer than the token budget.
    """
    if kind == "sft":
        n, budget = 1, run.recipe.sft.token_budget
        samples, response = run.recipe.sft.batch_samples, run.assumed.sft_response_tokens
    else:
        cfg = run.recipe.grpo
        n, budget = cfg.rollout.n, cfg.token_budget
        samples = cfg.prompts_per_step // cfg.updates_per_rollout * n
        response = run.response_tokens
    length = run.prompt_tokens + response
    if length > budget:
        raise ValueError(
            f"an expected sample of {length} tokens exceeds {kind}.token_budget={budget}: raise "
            f"it to --{kind}.token_budget={-(-length // 1024) * 1024}"
        )
    fit = budget // length
    micro_batches = math.ceil(samples / (fit * run.node.count))
    # The packer keeps groups whole if they fit into so few micro-batches. Otherwise it splits them
    # into parts of at most four and spreads these, so a micro-batch may hold one sample of each
    # group, and with it one image.
    whole = fit // n * micro_batches * run.node.count >= samples // n
    images = math.ceil((fit // n if whole else fit) * run.assumed.images_per_question)
    return Layout(
        samples=samples,
        sample_tokens=length,
        response_tokens=response,
        budget=budget,
        per_micro_batch=fit,
        micro_batches=micro_batches,
        images=images,
        towers=1 if whole else math.ceil(n / 4),
    )
