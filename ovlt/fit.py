"""What cannot fit, and the smallest change that makes it fit: one sentence for each problem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ovlt.estimate import GIB, Run, Stage, engine_itemsize, layout, memory
from ovlt.hardware import GPUS, MOST, node
from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.recipe import recipe_from

Setting = tuple[str, Any]  # a recipe key and its value
Problem = tuple[str, list[Setting]]  # what is wrong, and what mends it; empty: no setting does
UPDATE = ("update, in the head", "update, in a block")
SAMPLING = ("sampling", "weight sync")


def changed(run: Run, *settings: Setting) -> Run:
    """The run with other values of some recipe keys, given as ``table.key``."""
    tree = run.recipe.model_dump()
    for key, value in settings:
        *tables, last = key.split(".")
        at = tree
        for table in tables:
            at = at[table]
        at[last] = value
    return replace(run, recipe=recipe_from(tree))


def problems(run: Run, stages: Sequence[Stage]) -> list[str]:
    """Sentences that say what to change, and to which value; none where everything fits.

    With all that they say done, the run fits. Where no setting helps one of them, all name the one
    node that holds every stage.
    """
    for stage in stages:
        if found := list(_length_problems(run, stage)):
            return found
    lacking = [*_update_problems(run, stages), *_engine_problems(run, stages)]
    if all(settings for _, settings in lacking):
        return [f"{text}: set {_options(settings)}" for text, settings in lacking]
    return [f"{text}: {_rescue(run, stages)}" for text, _ in lacking]


def _options(settings: Sequence[Setting]) -> str:
    return " ".join(f"--{key}={str(value).lower()}" for key, value in settings)


def _length_problems(run: Run, stage: Stage) -> Iterator[str]:
    """What needs more tokens than the recipe allows."""
    try:
        layout(run, stage)
    except ValueError as error:
        yield f"{stage}: {error}"
    image = sizes.tokens_per_image(run.config, run.grid)
    most = run.recipe.grpo.rollout.max_prompt_tokens
    if stage == "grpo" and image + run.assumed.question_tokens > most:
        yield (
            f"grpo: an image of model.max_pixels={run.recipe.model.max_pixels} takes {image} "
            f"tokens, and with a question of {run.assumed.question_tokens} exceeds "
            f"grpo.rollout.max_prompt_tokens={most}, so it would be refused: set "
            f"--grpo.rollout.max_prompt_tokens={image + run.assumed.question_tokens}, or lower "
            "model.max_pixels"
        )


# --- the update --------------------------------------------------------------------------------
def _needed(run: Run, stage: Stage) -> float:
    """GiB of one GPU at the fullest moment of the update."""
    held = memory(run, stage)
    return max(held.total(moment) for moment in UPDATE) / GIB


def _fits(run: Run, stage: Stage) -> bool:
    try:
        return _needed(run, stage) <= run.node.gpu.memory_gib
    except ValueError:  # a sample longer than the budget
        return False


def _update_problems(run: Run, stages: Sequence[Stage]) -> Iterator[Problem]:
    for stage in stages:
        if _fits(run, stage):
            continue
        text = (
            f"{stage}: the update needs {_needed(run, stage):.1f} GiB per GPU, {run.node.name} has "
            f"{run.node.gpu.memory_gib:.1f}"
        )
        mends = _mends(run, stage)
        yield text, next((m for m in mends if _held(run, m, stage)), [])


def _held(run: Run, settings: Sequence[Setting], stage: Stage) -> bool:
    return _fits(changed(run, *settings), stage)


def _mends(run: Run, stage: Stage) -> Iterator[list[Setting]]:
    """Settings to try, the harmless first; a frozen tower is the only one that changes the run."""
    model = run.recipe.model
    free: list[Setting] = []
    if not model.activation_checkpointing:
        free.append(("model.activation_checkpointing", True))
    if not model.reshard:
        free.append(("model.reshard", True))
    yield from ([one] for one in free)
    if len(free) > 1:
        yield free
    budget = getattr(run.recipe, stage).token_budget
    for base in ([], free) if free else ([],):
        for smaller in range(budget - 1024, _longest(run, stage) - 1, -1024):
            yield [*base, (f"{stage}.token_budget", smaller)]
    least = [*free, (f"{stage}.token_budget", min(budget, _longest(run, stage)))]
    yield least
    if not model.freeze_vision:
        yield [*least, ("model.freeze_vision", True)]


def _longest(run: Run, stage: Stage) -> int:
    """Below this a token budget would refuse samples that the recipe allows."""
    if stage == "sft":
        return run.prompt_tokens + run.assumed.sft_response_tokens
    rollout = run.recipe.grpo.rollout
    return rollout.max_prompt_tokens + rollout.max_response_tokens


# --- the engine beside the sleeping update -----------------------------------------------------
def share_range(run: Run, stages: Sequence[Stage]) -> tuple[float, float]:
    """(least, most) of ``gpu_memory``: one longest sequence in the cache; the trainer beside it.

    (0, 1) where no stage opens an engine.
    """
    size = run.node.gpu.memory_gib * GIB
    beside = [
        sum(v for name, v in items.items() if not name.startswith("engine"))
        for stage in stages
        for moment, items in memory(run, stage).moments.items()
        if moment in SAMPLING
    ]
    if not beside:
        return 0.0, 1.0
    rollout = run.recipe.grpo.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    item = engine_itemsize(run)
    least = item * run.parts.total + run.assumed.engine_workspace_gib * GIB
    least += longest * sizes.kv_bytes_per_token(run.config, item)
    return math.ceil(100 * least / size) / 100, math.floor(100 * (size - max(beside)) / size) / 100


def _engine_problems(run: Run, stages: Sequence[Stage]) -> Iterator[Problem]:
    low, high = share_range(run, stages)
    share = run.recipe.grpo.rollout.gpu_memory
    if low <= share <= high:
        return
    text = f"grpo.rollout.gpu_memory={share} of {run.node.gpu.memory_gib:.1f} GiB "
    if share > high:
        text += "leaves the trainer's resident state no room beside the engine"
    else:
        text += "holds the engine's weights and workspace, but not one longest sequence"
    yield text, [_share(low, high, share)] if low <= high else []


def _share(low: float, high: float, wanted: float) -> Setting:
    return "grpo.rollout.gpu_memory", min(max(wanted, low), high)


# --- other hardware ----------------------------------------------------------------------------
def _rescue(run: Run, stages: Sequence[Stage]) -> str:
    """The first node that holds every stage, and the settings it takes."""
    share = run.recipe.grpo.rollout.gpu_memory
    for name in _larger(run):
        other, settings = replace(run, node=node(name)), []
        for stage in stages:
            if not _fits(other, stage):
                settings += next((m for m in _mends(other, stage) if _held(other, m, stage)), [])
            other = changed(other, *settings)
        low, high = share_range(other, stages)
        if low > high or not all(_fits(other, stage) for stage in stages):
            continue
        if not low <= share <= high:
            settings.append(_share(low, high, share))
        return f"take --hardware={name} {_options(settings)}".rstrip()
    return f"no setting and no node of {MOST} GPUs known here holds it, take a smaller model"


def _larger(run: Run) -> Iterator[str]:
    """More GPUs of the same kind, then kinds with more memory."""
    chip, _, _ = run.node.name.rpartition("x")
    yield from (f"{chip}x{count}" for count in range(run.node.count + 1, MOST + 1))
    bigger = [k for k, g in GPUS.items() if g.memory_gib > run.node.gpu.memory_gib]
    bigger.sort(key=lambda kind: GPUS[kind].memory_gib)
    yield from (f"{kind}x{count}" for kind in bigger for count in (run.node.count, MOST))
