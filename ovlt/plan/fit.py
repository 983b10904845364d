"""What cannot fit, and the smallest change that makes it fit: one sentence for each problem."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ovlt.config.load import recipe_from
from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.plan.fit_distill import distill_lack, distill_mends
from ovlt.plan.memory import GIB, Run, Stage, layout, memory, sampling
from ovlt.plan.stages import Part, parts
from ovlt.system.hardware import GPUS, MOST, node

Setting = tuple[str, Any]  # a recipe key and its value
UPDATE = ("update, in the head", "update, in a block")
SAMPLING = ("sampling", "weight sync")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a stage or several, and what mends it; empty: no setting does."""

    text: str
    settings: list[Setting]


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


def problems(run: Run) -> list[str]:
    """Sentences that say what to change, and to which value; none where everything fits.

    With all that they say done, the run fits. Where no setting helps one of them, all name the one
    node that holds every stage.
    """
    for part in distinct(run):
        if part.trains and (found := list(_length_problems(part.run, part.trains, part.name))):
            return found
    lacking = _solve(run)
    if all(problem.settings for problem in lacking):
        found = [f"{problem.text}: set {_options(problem.settings)}" for problem in lacking]
    else:
        rescue = _rescue(run)
        found = [f"{problem.text}: {rescue}" for problem in lacking]
    return list(dict.fromkeys(found))


def distinct(run: Run) -> list[Part]:
    """The stages that differ in what they need; the others would only repeat their sentences."""
    found: dict[str, Part] = {}
    for part in parts(run):
        tree = part.run.recipe.resolved()
        for table in ("distill", "sft", "grpo", "evaluate"):
            for key in ("stage", "title", "start", "data"):
                tree[table].pop(key, None)
        table = tree[part.table]
        if part.table == "distill":  # a model that a stage made has the sizes of model.path
            for key in ("captioner", "teacher"):
                table[key] = table[key] if table[key] in part.run.others else bool(table[key])
        needs = {name: tree[name] for name in ("model", "grpo")} | {part.table: table}
        found.setdefault(f"{part.table} {json.dumps(needs)}", part)
    return list(found.values())


def _solve(run: Run) -> list[Problem]:
    """What is wrong, each after the mends of those before it: what needs most comes first."""
    stages = distinct(run)
    trained = sorted((part for part in stages if part.trains), key=_needed, reverse=True)
    low, high = share_range(trained)
    checks: list[tuple[str, Lack, Mends]] = [
        *((part.name, _update_lack, _update_mends) for part in trained),
        *((part.name, distill_lack, distill_mends) for part in stages if part.table == "distill"),
        *((part.name, _engine_lack, lambda p: _share_mends(p, low, high)) for part in trained),
    ]
    found: list[Problem] = []
    for name, lack, mends in checks:
        part = _named(run, name)
        if text := lack(part):
            tried = (list(mend) for mend in mends(part))
            helps = (mend for mend in tried if not lack(_named(changed(run, *mend), name)))
            found.append(Problem(text, next(helps, [])))
            run = changed(run, *found[-1].settings)
    # A mend may undo an earlier one, or be hidden by a key of an iteration: then no setting helps.
    known = {problem.text for problem in found if not problem.settings}
    left = [text for part in distinct(run) for text in _lacks(part) if text not in known]
    return found + [Problem(text, []) for text in left]


def _lacks(part: Part) -> list[str]:
    """All that is wrong with a stage."""
    lacks = [_update_lack, _engine_lack] if part.trains else []
    lacks += [distill_lack] if part.table == "distill" else []
    return [text for lack in lacks if (text := lack(part))]


Lack = Callable[[Part], str]
Mends = Callable[[Part], Iterable[Sequence[Setting]]]


def _named(run: Run, name: str) -> Part:
    return next(part for part in parts(run) if part.name == name)


def _options(settings: Sequence[Setting]) -> str:
    return " ".join(f"--{key}={str(value).lower()}" for key, value in settings)


def _length_problems(run: Run, stage: Stage, name: str) -> Iterator[str]:
    """What needs more tokens than the recipe allows."""
    try:
        layout(run, stage)
    except ValueError as error:
        yield f"{name}: {error}"
    image = sizes.tokens_per_image(run.config, run.grid)
    most = run.recipe.grpo.rollout.max_prompt_tokens
    if stage == "grpo" and image + run.assumed.question_tokens > most:
        yield (
            f"{name}: an image of model.max_pixels={run.recipe.model.max_pixels} takes {image} "
            f"tokens, and with a question of {run.assumed.question_tokens} exceeds "
            f"grpo.rollout.max_prompt_tokens={most}, so it would be refused: set "
            f"--grpo.rollout.max_prompt_tokens={image + run.assumed.question_tokens}, or lower "
            "model.max_pixels"
        )


# --- the update --------------------------------------------------------------------------------
def _needed(part: Part) -> float:
    """GiB of one GPU at the fullest moment of the update; none where a sample is too long."""
    assert part.trains is not None
    try:
        held = memory(part.run, part.trains)
    except ValueError:
        return math.inf
    return max(held.total(moment) for moment in UPDATE) / GIB


def _update_lack(part: Part) -> str:
    needed, has = _needed(part), part.run.node.gpu.memory_gib
    if needed <= has:
        return ""
    return (
        f"{part.name}: the update needs {needed:.1f} GiB per GPU, {part.run.node.name} has "
        f"{has:.1f}"
    )


def _update_mends(part: Part) -> Iterator[list[Setting]]:
    assert part.trains is not None
    return _mends(part.run, part.trains)


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
def share_range(found: Sequence[Part]) -> tuple[float, float]:
    """(least, most) of ``gpu_memory``: one longest sequence in the cache; the trainer beside it.

    Of all stages together; (0, 1) where none of them opens an engine.
    """
    ranges = [_range(part) for part in found]
    return max((low for low, _ in ranges), default=0.0), min(
        (high for _, high in ranges), default=1.0
    )


def _range(part: Part) -> tuple[float, float]:
    assert part.trains is not None
    run, size = part.run, part.run.node.gpu.memory_gib * GIB
    moments = memory(run, part.trains).moments
    beside = [
        sum(v for name, v in items.items() if not name.startswith("engine"))
        for moment, items in moments.items()
        if moment in SAMPLING
    ]
    if not beside:
        return 0.0, 1.0
    least = sampling(run, 1, 1).least_share(run.recipe.grpo.rollout.max_prompt_tokens)
    return math.ceil(100 * least / size) / 100, math.floor(100 * (size - max(beside)) / size) / 100


def _engine_lack(part: Part) -> str:
    low, high = _range(part)
    share = part.run.recipe.engine.gpu_memory
    if low <= share <= high:
        return ""
    text = f"engine.gpu_memory={share} of {part.run.node.gpu.memory_gib:.1f} GiB "
    if share > high:
        return text + "leaves the trainer's resident state no room beside the engine"
    return text + "holds the engine's weights and workspace, but not one longest sequence"


def _share_mends(part: Part, low: float, high: float) -> list[list[Setting]]:
    share = part.run.recipe.engine.gpu_memory
    return [[("engine.gpu_memory", min(max(share, low), high))]] if low <= high else []


# --- other hardware ----------------------------------------------------------------------------
def _rescue(run: Run) -> str:
    """The first node that holds every stage, and the settings it takes."""
    for name in _larger(run):
        found = _solve(replace(run, node=node(name)))
        if all(problem.settings for problem in found):
            settings = {key: value for problem in found for key, value in problem.settings}
            return f"take --hardware={name} {_options(list(settings.items()))}".rstrip()
    return f"no setting and no node of {MOST} GPUs known here holds it, take a smaller model"


def _larger(run: Run) -> Iterator[str]:
    """More GPUs of the same kind, then kinds with more memory."""
    chip, _, _ = run.node.name.rpartition("x")
    yield from (f"{chip}x{count}" for count in range(run.node.count + 1, MOST + 1))
    bigger = [k for k, g in GPUS.items() if g.memory_gib > run.node.gpu.memory_gib]
    bigger.sort(key=lambda kind: GPUS[kind].memory_gib)
    yield from (f"{kind}x{count}" for kind in bigger for count in (run.node.count, MOST))
