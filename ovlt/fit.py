"""What cannot fit, and the smallest change that makes it fit: one sentence for each problem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ovlt.estimate import GIB, Run, Stage, layout, memory
from ovlt.hardware import GPUS, node
from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.recipe import recipe_from

UPDATE = ("update, in the head", "update, in a block")
SAMPLING = ("sampling", "weight sync")


def changed(run: Run, *settings: tuple[str, Any]) -> Run:
    """The run with other values of some recipe keys, given as ``table.key``."""
    tree = run.recipe.model_dump()
    for key, value in settings:
        *tables, last = key.split(".")
        at = tree
        for table in tables:
            at = at[table]
        at[last] = value
    return replace(run, recipe=recipe_from(tree))


def problems(run: Run, stage: Stage) -> list[str]:
    """Sentences that say what to change, and to which value; none where everything fits."""
    found = list(_image_problems(run, stage))
    try:
        layout(run, stage)
    except ValueError as error:
        return [*found, f"{stage}: {error}"]
    return [*found, *_update_problems(run, stage), *_engine_problems(run, stage)]


def _image_problems(run: Run, stage: Stage) -> Iterator[str]:
    image = sizes.tokens_per_image(run.config, run.grid)
    most = run.recipe.grpo.rollout.max_prompt_tokens
    if stage == "grpo" and image + run.assumed.question_tokens > most:
        side = sizes.merged_patch(run.config)
        pixels = max(1, most - run.assumed.question_tokens) * side * side
        yield (
            f"grpo: an image of model.max_pixels={run.recipe.model.max_pixels} takes {image} "
            f"tokens, and with its question exceeds grpo.rollout.max_prompt_tokens={most}, so it "
            f"would be refused: set --model.max_pixels={pixels}"
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


def _update_problems(run: Run, stage: Stage) -> Iterator[str]:
    if _fits(run, stage):
        return
    text = (
        f"{stage}: the update needs {_needed(run, stage):.1f} GiB per GPU, {run.node.name} has "
        f"{run.node.gpu.memory_gib:.1f}: "
    )
    for settings in _mends(run, stage):
        if _fits(mended := changed(run, *settings), stage):
            options = " ".join(f"--{key}={str(value).lower()}" for key, value in settings)
            yield f"{text}set {options} (then {_needed(mended, stage):.1f})"
            return
    everything = changed(run, *list(_mends(run, stage))[-1])
    for name in _larger(run):
        for candidate, how in ((run, ""), (everything, " with --model.activation_checkpointing")):
            if _fits(other := replace(candidate, node=node(name)), stage):
                yield f"{text}take --hardware={name}{how} (then {_needed(other, stage):.1f})"
                return
    yield f"{text}no setting and no node of {8} GPUs known here holds it; take a smaller model"


def _mends(run: Run, stage: Stage) -> Iterator[list[tuple[str, Any]]]:
    """Settings to try, the harmless first: none of them changes what is computed, but the last."""
    model = run.recipe.model
    free: list[tuple[str, Any]] = []
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
    if not model.freeze_vision:
        yield [*free, ("model.freeze_vision", True)]
    yield [*free, (f"{stage}.token_budget", min(budget, _longest(run, stage)))]


def _longest(run: Run, stage: Stage) -> int:
    """Below this a token budget would refuse samples that the recipe allows."""
    if stage == "sft":
        return run.prompt_tokens + run.assumed.sft_response_tokens
    rollout = run.recipe.grpo.rollout
    return rollout.max_prompt_tokens + rollout.max_response_tokens


def _larger(run: Run) -> Iterator[str]:
    """More GPUs of the same kind, then kinds with more memory."""
    chip, _, _ = run.node.name.rpartition("x")
    yield from (f"{chip}x{count}" for count in range(run.node.count + 1, 9))
    bigger = [k for k, g in GPUS.items() if g.memory_gib > run.node.gpu.memory_gib]
    bigger.sort(key=lambda kind: GPUS[kind].memory_gib)
    yield from (f"{kind}x{count}" for kind in bigger for count in (run.node.count, 8))


# --- the engine beside the sleeping update -----------------------------------------------------
def share_range(run: Run, stage: Stage) -> tuple[float, float]:
    """(least, most) of ``gpu_memory``: one longest sequence in the cache; the trainer beside it."""
    held = memory(run, stage)
    size = run.node.gpu.memory_gib * GIB
    beside = max(
        sum(v for k, v in held.moments[moment].items() if not k.startswith("engine"))
        for moment in SAMPLING
    )
    rollout = run.recipe.grpo.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    item = {"float32": 4, "bfloat16": 2}.get(rollout.dtype, run.itemsize)
    least = item * run.parts.total + run.assumed.engine_workspace_gib * GIB
    least += longest * sizes.kv_bytes_per_token(run.config, item)
    return math.ceil(100 * least / size) / 100, math.floor(100 * (size - beside) / size) / 100


def _engine_problems(run: Run, stage: Stage) -> Iterator[str]:
    if "sampling" not in memory(run, stage).moments:
        return
    low, high = share_range(run, stage)
    share = run.recipe.grpo.rollout.gpu_memory
    if low <= share <= high:
        return
    text = f"{stage}: grpo.rollout.gpu_memory={share} of {run.node.gpu.memory_gib:.1f} GiB "
    if share > high:
        text += "leaves the trainer's resident state no room beside the engine: "
    else:
        text += "holds the engine's weights and workspace, but not one longest sequence: "
    if low <= high:
        yield f"{text}set --grpo.rollout.gpu_memory={min(max(share, low), high):.2f}"
        return
    for name in _larger(run):
        least, most = share_range(replace(run, node=node(name)), stage)
        if least <= most:
            value = min(max(share, least), most)
            yield f"{text}take --hardware={name} --grpo.rollout.gpu_memory={value:.2f}"
            return
    yield f"{text}no node of {8} GPUs known here holds both; take a smaller model"
