"""What cannot fit, and the smallest change that makes it fit: one sentence for each problem."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ovlt.config.load import recipe_from
from ovlt.plan.engine import GIB
from ovlt.plan.fit_distill import Setting, check_distill, distill_fixes
from ovlt.plan.layout import layout
from ovlt.plan.memory import memory
from ovlt.plan.run import Run, StageKind, sampling_work
from ovlt.plan.stages import PlannedStage, planned_stages
from ovlt.system.hardware import GPUS, MOST, node

Check = Callable[[PlannedStage], str]  # says what is wrong with a stage; "" if nothing is
Fixes = Callable[[PlannedStage], Iterable[Sequence[Setting]]]  # settings to try, one after another
UPDATE = ("update, in the head", "update, in a block")  # moments of ovlt.plan.memory
SAMPLING = ("sampling", "weight sync")


@dataclass(frozen=True)
class Problem:
    """A problem of one stage or several, and the settings that fix it; none if no setting does."""

    text: str
    settings: Sequence[Setting]


def with_settings(run: Run, *settings: Setting) -> Run:
    """The run with other values of some recipe keys, given as ``table.key``."""
    tree = run.recipe.model_dump()
    for key, value in settings:
        *tables, last = key.split(".")
        branch = tree
        for table in tables:
            branch = branch[table]
        branch[last] = value
    return replace(run, recipe=recipe_from(tree))


def problems(run: Run) -> list[str]:
    """Sentences that say what to change, and to which value; none if everything fits.

    Once all of these changes are made, the run fits. If no setting helps one of the problems, every
    sentence names the node that holds every stage.
    """
    for stage in distinct_stages(run):
        if stage.trains and (too_long := list(_length_problems(stage, stage.trains))):
            return too_long
    unsolved = _solve(run)
    if all(problem.settings for problem in unsolved):
        sentences = [f"{problem.text}: set {_options(problem.settings)}" for problem in unsolved]
    else:
        other_node = _other_node(run)
        sentences = [f"{problem.text}: {other_node}" for problem in unsolved]
    return list(dict.fromkeys(sentences))


def distinct_stages(run: Run) -> list[PlannedStage]:
    """The stages that differ in what they need; the others would only repeat their sentences."""
    stages: dict[str, PlannedStage] = {}
    for stage in planned_stages(run):
        tree = stage.run.recipe.resolved()
        for table in ("distill", "sft", "grpo", "evaluate"):
            for key in ("stage", "title", "start", "data"):
                tree[table].pop(key, None)
        table = tree[stage.table]
        if stage.table == "distill":  # a model that a stage writes has the sizes of model.path
            for key in ("captioner", "teacher"):
                table[key] = table[key] if table[key] in stage.run.others else bool(table[key])
        needs = {name: tree[name] for name in ("model", "grpo")} | {stage.table: table}
        stages.setdefault(f"{stage.table} {json.dumps(needs)}", stage)
    return list(stages.values())


def _solve(run: Run) -> list[Problem]:
    """Find what is wrong, each problem after the fixes of those before it.

    The stage that needs most comes first, because its fixes often help the others.
    """
    stages = distinct_stages(run)
    trained = sorted((stage for stage in stages if stage.trains), key=_update_gib, reverse=True)
    distills = [stage for stage in stages if stage.table == "distill"]
    low, high = share_range(trained)
    checks: list[tuple[str, Check, Fixes]] = [
        *((stage.name, _check_update, _update_fixes) for stage in trained),
        *((stage.name, check_distill, distill_fixes) for stage in distills),
        *((stage.name, _check_engine, lambda s: _share_fixes(s, low, high)) for stage in trained),
    ]
    solved: list[Problem] = []
    for name, check, fixes in checks:
        stage = _stage_named(run, name)
        if text := check(stage):
            working = (
                settings
                for settings in fixes(stage)
                if not check(_stage_named(with_settings(run, *settings), name))
            )
            solved.append(Problem(text, next(working, [])))
            run = with_settings(run, *solved[-1].settings)
    # A fix may undo an earlier one, or a key of an iteration may hide it: then no setting helps.
    hopeless = {problem.text for problem in solved if not problem.settings}
    left = [text for stage in distinct_stages(run) for text in _texts(stage)]
    return solved + [Problem(text, []) for text in left if text not in hopeless]


def _texts(stage: PlannedStage) -> list[str]:
    """All that is wrong with a stage."""
    checks: list[Check] = [_check_update, _check_engine] if stage.trains else []
    if stage.table == "distill":
        checks = [check_distill]
    return [text for check in checks if (text := check(stage))]


def _stage_named(run: Run, name: str) -> PlannedStage:
    return next(stage for stage in planned_stages(run) if stage.name == name)


def _options(settings: Sequence[Setting]) -> str:
    """The settings as words of a command line."""
    return " ".join(f"--{key}={str(value).lower()}" for key, value in settings)


def _length_problems(stage: PlannedStage, kind: StageKind) -> Iterator[str]:
    """Say what needs more tokens than the recipe allows."""
    run = stage.run
    try:
        layout(run, kind)
    except ValueError as error:
        yield f"{stage.name}: {error}"
    prompt = run.tokens_per_image + run.assumed.question_tokens
    limit = run.recipe.grpo.rollout.max_prompt_tokens
    if kind == "grpo" and prompt > limit:
        yield (
            f"{stage.name}: an image of model.max_pixels={run.recipe.model.max_pixels} takes "
            f"{run.tokens_per_image} tokens, and with a question of "
            f"{run.assumed.question_tokens} exceeds grpo.rollout.max_prompt_tokens={limit}, so it "
            f"would be refused: set --grpo.rollout.max_prompt_tokens={prompt}, or lower "
            "model.max_pixels"
        )


# --- the update --------------------------------------------------------------------------------
def _update_gib(stage: PlannedStage) -> float:
    """GiB of one GPU at the fullest moment of the update; infinite if a sample is too long."""
    assert stage.trains is not None
    try:
        planned = memory(stage.run, stage.trains)
    except ValueError:
        return math.inf
    return max(planned.total(moment) for moment in UPDATE) / GIB


def _check_update(stage: PlannedStage) -> str:
    needed, node = _update_gib(stage), stage.run.node
    if needed <= node.gpu.memory_gib:
        return ""
    return (
        f"{stage.name}: the update needs {needed:.1f} GiB per GPU, {node.name} has "
        f"{node.gpu.memory_gib:.1f}"
    )


def _update_fixes(stage: PlannedStage) -> Iterator[list[Setting]]:
    """Settings to try, the harmless ones first: only a frozen tower changes what is learned."""
    assert stage.trains is not None
    kind, model = stage.trains, stage.run.recipe.model
    harmless: list[Setting] = []
    if model.activation_checkpointing in ("none", "tower", "mlp"):
        harmless.append(("model.activation_checkpointing", "full"))
    if not model.reshard:
        harmless.append(("model.reshard", True))
    yield from ([setting] for setting in harmless)
    if len(harmless) > 1:
        yield harmless
    recipe = stage.run.recipe
    budget = recipe.sft.token_budget if kind == "sft" else recipe.grpo.token_budget
    least = _least_budget(stage.run, kind)
    for base in ([], harmless) if harmless else ([],):
        for smaller in range(budget - 1024, least - 1, -1024):
            yield [*base, (f"{kind}.token_budget", smaller)]
    smallest: list[Setting] = [*harmless, (f"{kind}.token_budget", min(budget, least))]
    yield smallest
    if not model.freeze_vision:
        yield [*smallest, ("model.freeze_vision", True)]


def _least_budget(run: Run, kind: StageKind) -> int:
    """The token budget below which samples that the recipe allows would be refused."""
    if kind == "sft":
        return run.prompt_tokens + run.assumed.sft_response_tokens
    rollout = run.recipe.grpo.rollout
    return rollout.max_prompt_tokens + rollout.max_response_tokens


# --- the engine beside the sleeping update -----------------------------------------------------
def share_range(stages: Sequence[PlannedStage]) -> tuple[float, float]:
    """(least, most) ``engine.gpu_memory`` that suits all of these stages.

    At least one longest sequence in the cache; at most what the trainer leaves free. (0, 1) if no
    stage opens an engine.
    """
    ranges = [_stage_share_range(stage) for stage in stages]
    lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
    return max(lows, default=0.0), min(highs, default=1.0)


def _stage_share_range(stage: PlannedStage) -> tuple[float, float]:
    assert stage.trains is not None
    run, size = stage.run, stage.run.node.gpu.memory_gib * GIB
    moments = memory(run, stage.trains).moments
    beside = [  # bytes that the trainer holds while the engine is awake
        sum(held for item, held in moments[moment].items() if not item.startswith("engine"))
        for moment in SAMPLING
        if moment in moments
    ]
    if not beside:
        return 0.0, 1.0
    least = sampling_work(run, 1, 1).least_share(run.recipe.grpo.rollout.max_prompt_tokens)
    return math.ceil(100 * least / size) / 100, math.floor(100 * (size - max(beside)) / size) / 100


def _check_engine(stage: PlannedStage) -> str:
    low, high = _stage_share_range(stage)
    share = stage.run.recipe.engine.gpu_memory
    if low <= share <= high:
        return ""
    text = f"engine.gpu_memory={share} of {stage.run.node.gpu.memory_gib:.1f} GiB "
    if share > high:
        return text + "leaves no room for what the trainer keeps on the GPU beside the engine"
    return text + "holds the engine's weights and workspace, but not one longest sequence"


def _share_fixes(stage: PlannedStage, low: float, high: float) -> list[list[Setting]]:
    share = stage.run.recipe.engine.gpu_memory
    return [[("engine.gpu_memory", min(max(share, low), high))]] if low <= high else []


# --- other hardware ----------------------------------------------------------------------------
def _other_node(run: Run) -> str:
    """Name the first node that holds every stage, and the settings it takes."""
    for name in _larger_nodes(run):
        solved = _solve(replace(run, node=node(name)))
        if all(problem.settings for problem in solved):
            settings = dict(setting for problem in solved for setting in problem.settings)
            return f"take --hardware={name} {_options(list(settings.items()))}".rstrip()
    return f"no setting and no known node of up to {MOST} GPUs holds it, take a smaller model"


def _larger_nodes(run: Run) -> Iterator[str]:
    """Names of nodes: more GPUs of the same kind, then kinds with more memory."""
    chip, _, _ = run.node.name.rpartition("x")
    yield from (f"{chip}x{count}" for count in range(run.node.count + 1, MOST + 1))
    larger = [kind for kind, gpu in GPUS.items() if gpu.memory_gib > run.node.gpu.memory_gib]
    larger.sort(key=lambda kind: GPUS[kind].memory_gib)
    yield from (f"{kind}x{count}" for kind in larger for count in (run.node.count, MOST))
