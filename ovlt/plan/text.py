"""The text that ``ovlt plan`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ovlt.config.load import REPOSITORY
from ovlt.model import sizes
from ovlt.plan.assumed import Assumptions
from ovlt.plan.distill import PlannedPhase, planned_phases, question_count
from ovlt.plan.engine import GIB
from ovlt.plan.hours import hours_table
from ovlt.plan.layout import Layout, layout
from ovlt.plan.memory import checkpoint_bytes, engine_items, memory
from ovlt.plan.run import Run, StageKind
from ovlt.plan.seconds import seconds_per_step
from ovlt.plan.stages import PlannedStage, held_out_questions, stage_seconds


def plan_text(run: Run, stages: Sequence[PlannedStage], sizes_file: Path, name: str = "") -> str:
    """Return the whole output; stages with the same text are printed once.

    ``sizes_file`` is where the model's sizes come from, ``name`` the recipe's name.
    """
    bodies: dict[tuple[str, ...], list[str]] = {}  # names of stages by their text
    for stage in stages:
        bodies.setdefault(tuple(_stage_lines(stage)), []).append(stage.name)
    lines = _head_lines(run, sizes_file)
    for body, names in bodies.items():
        lines += ["", f"[{', '.join(names)}]", *body]
    if run.recipe.cycle.iterations:
        lines += ["", "[cycle]", *hours_table(stages, name)]
    return "\n".join([*lines, "", *_assumption_lines(run)])


def _head_lines(run: Run, sizes_file: Path) -> list[str]:
    """The node, the sizes, the parameters."""
    p, gpu = run.parameters, run.node.gpu
    compute = "bfloat16" if run.itemsize == 2 else "float32"
    shipped = sizes_file.is_relative_to(REPOSITORY)
    head = "tied to the embedding" if p.head == 0 else f"{p.head / 1e6:,.1f}"
    return [
        (
            f"{run.node.name}: {gpu.memory_gib:.1f} GiB, {gpu.flops / 1e12:.0f} TFLOP/s, "
            f"{gpu.bandwidth / 1e12:.2f} TB/s each; compute in {compute}"
        ),
        f"sizes: {sizes_file.relative_to(REPOSITORY) if shipped else sizes_file}",
        (
            f"parameters, millions: tower {p.tower / 1e6:,.1f} + decoder {p.decoder / 1e6:,.1f} + "
            f"embedding {p.embedding / 1e6:,.1f} + head {head} = {p.total / 1e6:,.1f}"
        ),
    ]


def _stage_lines(stage: PlannedStage) -> list[str]:
    if stage.table == "distill":
        return _distill_lines(stage)
    if stage.trains is None:
        return _total_lines(stage, f"{held_out_questions(stage.run)} held-out questions")
    try:
        return _training_lines(stage, stage.trains)
    except ValueError as error:  # a sample that is longer than the token budget
        return [f"  {error}"]


def _training_lines(stage: PlannedStage, kind: StageKind) -> list[str]:
    run, batch = stage.run, layout(stage.run, kind)
    tower = ", the tower frozen" if run.recipe.model.freeze_vision else ""
    phases = seconds_per_step(run, kind)
    by_phase = ", ".join(f"{name} {value:.1f}" for name, value in phases.items())
    return [
        f"  trains {run.trainable / 1e6:,.1f} million parameters{tower}",
        *_layout_lines(run, kind, batch),
        "",
        *_memory_lines(run, kind),
        "",
        "  seconds per step (not measured):",
        f"  {by_phase}; sum {sum(phases.values()):.1f}",
        *_total_lines(stage, _count(stage.steps, "step")),
    ]


def _layout_lines(run: Run, kind: StageKind, batch: Layout) -> list[str]:
    updates = 1 if kind == "sft" else run.recipe.grpo.updates_per_rollout
    mean = batch.tokens / batch.micro_batches / run.node.count
    copies = batch.samples * batch.sample_tokens
    shared = f"; {batch.tokens / copies:.0%} of these, since prompts are shared"
    return [
        (
            f"  {_count(updates, 'update')} per step, each of {batch.samples} samples x "
            f"{batch.sample_tokens} tokens (image {run.image_tokens}, prompt {run.prompt_tokens}, "
            f"response {batch.response_tokens}){shared if batch.tokens < copies else ''}"
        ),
        (
            f"  {_count(batch.micro_batches, 'micro-batch', 'es')} per rank and update, each of at "
            f"most {batch.per_micro_batch} samples, {batch.images} images, {batch.budget} tokens "
            f"({mean:.0f} on average)"
        ),
    ]


def _distill_lines(stage: PlannedStage) -> list[str]:
    run, phases = stage.run, planned_phases(stage.run)
    questions = question_count(run)
    lines = [
        f"  {questions:,} questions" if questions else "  questions: unknown",
        *(_phase_line(run, phase) for phase in phases),
        "",
        *_item_lines({phase.name: engine_items(phase.work) for phase in phases}, run),
    ]
    for phase in phases:
        tokens = phase.work.kv_tokens
        context = phase.work.prompt_tokens + phase.work.response_tokens
        lines.append(
            f"  {phase.name}: the KV cache of an engine holds {tokens:,} tokens, "
            f"{tokens // context:,} expected sequences"
        )
    return [*lines, *_total_lines(stage, "in all")]


def _phase_line(run: Run, phase: PlannedPhase) -> str:
    """The model of a phase, its engines, and the length of what they read and sample."""
    work = phase.work
    of_the_run = phase.model not in {run.recipe.expand(run.recipe.model.path), *run.others}
    model = "a model of the run" if of_the_run else phase.model
    return (
        f"  {phase.name}: {model}, {sizes.parameters(work.config).total / 1e6:,.1f} million "
        f"parameters; {_count(phase.engines, 'engine')} of {_count(work.gpus, 'GPU')}; prompts of "
        f"{work.prompt_tokens} tokens, {work.n} x {work.response_tokens}"
    )


def _total_lines(stage: PlannedStage, what: str) -> list[str]:
    """Hours of a stage, and how many of them go to anything but its steps."""
    seconds = stage_seconds(stage)
    if not seconds:
        if stage.table == "distill":
            return ["  distill.data is not here: --assume.questions=N gives the hours"]
        return ["  sft.data is not here: --assume.sft_rows=N gives the number of steps"]
    total = sum(seconds.values())
    items = ", ".join(
        f"{_item_name(stage, name)} {value / 3600:.2f}"
        for name, value in seconds.items()
        if value and name != "steps"
    )
    return [
        f"  {what}: {total / 3600:.2f} hours = {total / 86400:.3f} days; of these hours, {items}"
    ]


def _item_name(stage: PlannedStage, name: str) -> str:
    """What seconds are spent on, with how often if it happens more than once."""
    if name == "validations":
        return _count(stage.validations, "validation")
    if name == "checkpoints":
        size = checkpoint_bytes(stage.run) / 1e9
        return f"{_count(stage.checkpoints, 'checkpoint')} of {size:.0f} GB"
    return name


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"


def _memory_lines(run: Run, kind: StageKind) -> list[str]:
    planned = memory(run, kind)
    lines = _item_lines(planned.moments, run)
    if planned.kv_tokens:
        context = run.prompt_tokens + run.response_tokens
        asleep = "sleeping engines drop their weights (engine.sleep_level=2)"
        if planned.host:
            asleep = (
                f"the sleeping engines' weights take {planned.host / GIB:.0f} GiB of host memory "
                "(engine.sleep_level=1)"
            )
        lines.append(
            f"  the KV cache holds {planned.kv_tokens:,} tokens, {planned.kv_tokens // context:,} "
            f"expected sequences; {asleep}"
        )
    return lines


def _item_lines(moments: Mapping[str, Mapping[str, float]], run: Run) -> list[str]:
    """A table of bytes: a row for each item, a column for each moment."""
    names = list(dict.fromkeys(name for items in moments.values() for name in items))
    titles = [moment.replace("update, ", "") for moment in moments]
    lines = [_line("GiB per GPU", titles)]
    for name in names:
        column = [items.get(name) for items in moments.values()]
        lines.append(_line(name, ["-" if n is None else f"{n / GIB:.2f}" for n in column]))
    totals = [sum(items.values()) / GIB for items in moments.values()]
    size = run.node.gpu.memory_gib
    free = ["TOO MUCH" if total > size else f"{size - total:.2f}" for total in totals]
    lines.append(_line("total", [f"{total:.2f}" for total in totals]))
    return [*lines, _line(f"free of {size:.1f}", free)]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"  {name:<58}" + "".join(f"{cell:>12}" for cell in cells)


def _assumption_lines(run: Run) -> list[str]:
    pairs = [f"{f.name}={getattr(run.assumed, f.name):g}" for f in fields(Assumptions)]
    lines = ["assumed, not measured; replaced by --assume.KEY=VALUE:"]
    for pair in pairs:
        if len(lines) == 1 or len(lines[-1]) + len(pair) > 98:
            lines.append("  " + pair)
        else:
            lines[-1] += ", " + pair
    return [
        *lines,
        "Seconds of products = FLOPs / (product rate x efficiency). An update takes 3 forwards,",
        "and what is recomputed once more. Decoding takes, per token of a batch until",
        "its longest answer, (weights + cache of the running sequences) / (bandwidth x efficiency)",
        "+ overhead. A weight sync casts shards to the engine's dtype and gathers them over the",
        "links; at engine.sleep_level=1 the engine's weights also move over the host's link and",
        "back. The image probe is one of the rollout's prompts. A frozen tower runs once over the",
        "images of a step, the last layer's MLP over tokens with loss only. Answers are graded",
        "while others are sampled. Traces are sampled in batches of distill.shard questions per",
        "engine, each until its longest answer.",
    ]
