"""Which samples go into which micro-batch of which rank: a plan from lengths alone.

Every rank gets the same number of micro-batches, none above the token budget, and what they compute
(decoder, head and vision tower) is spread evenly. Samples that share their prompt stay together as
far as that pays: the prompt's tokens, and the tower's pass over its images, are computed once for
all of them. A group that is divided takes a copy of its prompt into each part. A sample is never
cut.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ovlt.model import sizes

# A rank without samples runs this many text tokens of weight zero, so that it joins every
# collective.
FILLER_TOKENS = 2
# How many samples of a group stay together, at most: all (0), or parts of it. Larger parts share
# more; smaller ones fill micro-batches better.
PART_SIZES = (0, 4, 2, 1)
# What a micro-batch costs whatever is in it, as a share of a full one: launches, and weights to be
# gathered. A judgement, not measured; it decides between more micro-batches and more copies.
FIXED_SHARE = 0.05
GOOD_ENOUGH = 1.02  # a plan that takes this times the least possible is taken at once


@dataclass(frozen=True)
class Extent:
    """What planning needs of a sample: no pixels, no ids."""

    tokens: int
    grids: tuple[sizes.Grid, ...]  # patches of its images
    group: int  # samples of one group share their images
    name: str = ""
    prompt: int = 0  # the first tokens, which the samples of its group share; 0: none
    labels: int = 0  # tokens that are trained on


@dataclass(frozen=True)
class Part:
    """Samples of one group that are packed together, and what is computed for them."""

    indices: tuple[int, ...]
    group: int
    tokens: int  # in the packed row: a shared prompt counts once
    text: float  # FLOPs of a forward through decoder and head
    tower: float  # FLOPs of the tower's forward over the images, each once

    @property
    def cost(self) -> float:
        return self.text + self.tower


@dataclass
class BatchPlan:
    """``bins[rank][m]`` = indices of the samples in micro-batch m of that rank.

    FLOPs are those of a forward over all samples, as they are computed.
    """

    bins: list[list[list[int]]]
    tokens: int  # computed: a shared prompt counts once in each micro-batch
    sample_tokens: int  # of all samples, each with its own prompt
    text: float  # FLOPs of decoder and head
    tower: float  # FLOPs of the vision tower
    fill: float  # mean tokens of a micro-batch / token budget
    imbalance: float  # largest rank cost / mean rank cost
    filler: float  # tokens of filler samples and dummy images / all tokens
    seconds: float  # of the slowest rank in each micro-batch, in FLOPs, and the fixed share


def plan(samples: Sequence[Extent], *, ranks: int, budget: int, config: sizes.Sizes) -> BatchPlan:
    """Distribute samples over ``ranks`` x M micro-batches of at most ``budget`` tokens each.

    Groups stay whole, or are divided into parts of one of ``PART_SIZES``, whichever takes least
    time; M is the smallest number that fits these. Deterministic: the same samples give the same
    plan on every rank. Raises ValueError for a sample longer than the budget.
    """
    for sample in samples:
        if sample.tokens > budget:
            raise ValueError(
                f"a sample of {sample.tokens} tokens ({sample.name}) exceeds the token "
                f"budget of {budget}: samples are never cut, so raise token_budget or lower the "
                "limits"
            )
    join = functools.partial(_part, samples, config)
    plans: list[BatchPlan] = []
    largest = max(Counter(sample.group for sample in samples).values(), default=0)  # samples
    for size in PART_SIZES:
        if plans and size >= largest:
            continue  # divides nothing
        parts = _parts(samples, size, budget, join)
        tokens, cost = sum(p.tokens for p in parts), sum(p.cost for p in parts)
        fixed = FIXED_SHARE * budget * cost / max(1, tokens)  # of a micro-batch, in FLOPs
        # It ends: at the latest with one part for each micro-batch.
        for micro in itertools.count(max(1, math.ceil(tokens / (budget * ranks)))):
            bins = _fit(parts, micro * ranks, budget)
            if bins is not None:
                assigned = _assign([_merged(b, join) for b in bins], ranks, micro)
                plans.append(_batch_plan(samples, assigned, budget, fixed))
                break
        fewest = max(1, math.ceil(tokens / (budget * ranks)))
        if plans[-1].seconds <= GOOD_ENOUGH * (cost / ranks + fewest * fixed):
            break  # only copies more would come after this
    return min(plans, key=lambda p: p.seconds)


def _part(samples: Sequence[Extent], config: sizes.Sizes, indices: tuple[int, ...]) -> Part:
    """Describe samples of one group that are packed together."""
    first = samples[indices[0]]
    shared = first.prompt if len(indices) > 1 else 0
    own = [samples[i].tokens - shared for i in indices]  # of each sample, behind the shared prompt
    text = sizes.decoder_flops(config, shared)
    text += sum(sizes.decoder_flops(config, n, context=shared) for n in own)
    tokens, labels = shared + sum(own), sum(samples[i].labels for i in indices)
    text -= sizes.mlp_flops(config, max(0, tokens - labels))  # of the last layer
    text += sizes.head_flops(config, labels)
    tower = sizes.tower_flops(config, first.grids)
    return Part(indices, first.group, tokens, text, tower)


def _parts(
    samples: Sequence[Extent], size: int, budget: int, join: Callable[[tuple[int, ...]], Part]
) -> list[Part]:
    """Divide each group into even parts of at most ``size`` samples (0: no limit) that fit."""
    groups: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(i)
    parts: list[Part] = []
    for group in groups.values():
        fewest = math.ceil(len(group) / size) if size else 1
        for count in range(fewest, len(group) + 1):
            divided = [join(indices) for indices in _even(group, count)]
            if all(part.tokens <= budget for part in divided):
                parts += divided
                break
    return parts


def _even(group: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """Divide a list into ``count`` parts whose lengths differ by one at most."""
    ends = [len(group) * i // count for i in range(count + 1)]
    return (tuple(group[a:b]) for a, b in itertools.pairwise(ends))


def _fit(parts: Sequence[Part], count: int, budget: int) -> list[list[Part]] | None:
    """Fill ``count`` bins within the budget, evenly costed; None if that fails.

    Longest processing time first by cost; if that runs out of room, by tokens, which fills best.
    """
    for key in ("cost", "tokens"):
        bins: list[list[Part]] = [[] for _ in range(count)]
        tokens, load = [0] * count, [0.0] * count
        for part in sorted(parts, key=lambda p: (-getattr(p, key), p.indices)):
            room = [b for b in range(count) if tokens[b] + part.tokens <= budget]
            if not room:
                break
            best = min(room, key=lambda b: (load[b], b))
            bins[best].append(part)
            tokens[best] += part.tokens
            load[best] += getattr(part, key)
        else:
            return bins
    return None


def _merged(bin_: Sequence[Part], join: Callable[[tuple[int, ...]], Part]) -> list[Part]:
    """Join parts of one group that came into the same micro-batch."""
    groups: dict[int, list[Part]] = {}
    for part in bin_:
        groups.setdefault(part.group, []).append(part)
    return [
        of[0] if len(of) == 1 else join(tuple(sorted(i for part in of for i in part.indices)))
        for of in groups.values()
    ]


def _assign(bins: list[list[Part]], ranks: int, micro: int) -> list[list[list[Part]]]:
    """Give micro-batches to ranks: dearest first, each to the cheapest rank with a free place."""
    out: list[list[list[Part]]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for parts in sorted(bins, key=lambda b: -_cost(b)):
        rank = min((r for r in range(ranks) if len(out[r]) < micro), key=lambda r: (load[r], r))
        out[rank].append(parts)
        load[rank] += _cost(parts)
    return out


def _cost(bin_: Sequence[Part]) -> float:
    return sum(part.cost for part in bin_)


def _idle_tokens(bin_: Sequence[Part]) -> int:
    """Tokens computed for nothing: fillers if it is empty, a dummy image if it has none."""
    return (0 if bin_ else FILLER_TOKENS) + (0 if any(part.tower for part in bin_) else 1)


def _batch_plan(
    samples: Sequence[Extent], assigned: list[list[list[Part]]], budget: int, fixed: float
) -> BatchPlan:
    """Describe ``assigned[rank][m]``; each micro-batch costs ``fixed`` FLOPs besides."""
    costs = [[_cost(bin_) for bin_ in rank] for rank in assigned]
    by_rank = [sum(rank) for rank in costs]
    mean = sum(by_rank) / len(by_rank)
    bins = [bin_ for rank in assigned for bin_ in rank]
    parts = [part for bin_ in bins for part in bin_]
    tokens = sum(part.tokens for part in parts)
    idle = sum(map(_idle_tokens, bins))
    return BatchPlan(
        bins=[[[i for part in bin_ for i in part.indices] for bin_ in rank] for rank in assigned],
        tokens=tokens,
        sample_tokens=sum(sample.tokens for sample in samples),
        text=sum(part.text for part in parts),
        tower=sum(part.tower for part in parts),
        fill=tokens / (len(bins) * budget),
        imbalance=max(by_rank) / mean if mean else 1.0,
        filler=idle / (tokens + idle),
        # Ranks meet in each micro-batch: the dearest decides.
        seconds=sum(max(column) + fixed for column in zip(*costs, strict=True)),
    )
