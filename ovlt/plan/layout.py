"""How the samples of one update are laid out in micro-batches, by the packer that training uses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ovlt.model import sizes
from ovlt.plan.run import Run, StageKind
from ovlt.train.balance import Extent, plan


@dataclass(frozen=True)
class Layout:
    """The micro-batches of one update, if every sample has the expected length."""

    samples: int  # of all ranks
    sample_tokens: int
    response_tokens: int
    tokens: int  # computed for all samples: a shared prompt counts once in each micro-batch
    keys: float  # that attention gathers, per computed token: a prompt's for each response
    budget: int  # tokens that a micro-batch may have
    per_micro_batch: int  # samples in one, at most
    micro_batches: int  # of each rank
    images: int  # of one, at most
    # FLOPs of a forward over all samples.
    decoder: float
    head: float
    tower: float


def layout(run: Run, kind: StageKind) -> Layout:
    """Lay out samples of equal length.

    Raises ValueError if a sample is longer than the token budget.
    """
    if kind == "sft":
        n, budget, shared = 1, run.recipe.sft.token_budget, False
        samples, response = run.recipe.sft.batch_samples, run.assumed.sft_response_tokens
    else:
        cfg = run.recipe.grpo
        n, budget, shared = cfg.rollout.n, cfg.token_budget, cfg.share_prompts
        samples = cfg.prompts_per_step // cfg.updates_per_rollout * n
        response = run.response_tokens
    length = run.prompt_tokens + response
    if length > budget:
        raise ValueError(
            f"an expected sample of {length} tokens exceeds {kind}.token_budget={budget}: raise "
            f"it to --{kind}.token_budget={-(-length // 1024) * 1024}"
        )
    images = run.assumed.images_per_question
    whole = math.ceil(images)  # the packer takes whole images; their FLOPs are scaled below
    extents = [
        Extent(
            tokens=length,
            grids=(run.grid,) * whole,
            group=i // n,
            prompt=run.prompt_tokens if shared else 0,
            labels=response,
        )
        for i in range(samples)
    ]
    planned = plan(extents, ranks=run.node.count, budget=budget, config=run.config)
    bins = [bin_ for rank in planned.bins for bin_ in rank]
    copies = samples * length
    head = sizes.head_flops(run.config, samples * response)
    return Layout(
        samples=samples,
        sample_tokens=length,
        response_tokens=response,
        tokens=planned.tokens,
        keys=1 + (samples * run.prompt_tokens / planned.tokens if planned.tokens < copies else 0),
        budget=budget,
        per_micro_batch=max(len(bin_) for bin_ in bins),
        micro_batches=len(planned.bins[0]),
        images=math.ceil(max(len({i // n for i in bin_}) for bin_ in bins) * images),
        decoder=planned.text - head,
        head=head,
        tower=planned.tower * images / max(1, whole),
    )
