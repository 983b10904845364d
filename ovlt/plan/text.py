"""What ``ovlt.plan`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ovlt.config.load import REPOSITORY
from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.plan.assumed import Assumptions
from ovlt.plan.distill import phases_of, questions
from ovlt.plan.engine import GIB
from ovlt.plan.memory import Run, Stage, checkpoint_bytes, engine_items, layout, memory
from ovlt.plan.seconds import step_seconds
from ovlt.plan.stages import Part, held_out_questions, looks, part_seconds, saves
from ovlt.plan.table import table


def text(run: Run, parts: Sequence[Part], origin: Path, name: str = "") -> str:
    """The whole output; stages that say the same are said once. ``name`` is the recipe's."""
    p, gpu = run.parts, run.node.gpu
    compute = "bfloat16" if run.itemsize == 2 else "float32"
    shown = origin.relative_to(REPOSITORY) if origin.is_relative_to(REPOSITORY) else origin
    head = "tied to the embedding" if p.head == 0 else f"{p.head / 1e6:,.1f}"
    lines = [
        (
            f"{run.node.name}: {gpu.memory_gib:.1f} GiB, {gpu.flops / 1e12:.0f} TFLOP/s, "
            f"{gpu.bandwidth / 1e12:.2f} TB/s each; compute in {compute}"
        ),
        f"sizes: {shown}",
        (
            f"parameters, millions: tower {p.tower / 1e6:,.1f} + decoder {p.decoder / 1e6:,.1f} + "
            f"embedding {p.embedding / 1e6:,.1f} + head {head} = {p.total / 1e6:,.1f}"
        ),
    ]
    said: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        said.setdefault(tuple(_part_text(part)), []).append(part.name)
    for body, names in said.items():
        lines += ["", f"[{', '.join(names)}]", *body]
    if run.recipe.cycle.iterations:
        lines += ["", "[cycle]", *table(parts, name)]
    return "\n".join([*lines, "", *_assumed_text(run)])


def _part_text(part: Part) -> list[str]:
    if part.table == "distill":
        return _distill_text(part)
    stage = part.trains
    if stage is None:
        return _total_text(part, f"{held_out_questions(part.run)} held-out questions")
    try:
        plan = layout(part.run, stage)
    except ValueError as error:
        return [f"  {error}"]
    run = part.run
    updates = 1 if stage == "sft" else run.recipe.grpo.updates_per_rollout
    mean = plan.samples * plan.sample_tokens / plan.micro_batches / run.node.count
    batches = "micro-batch" if plan.micro_batches == 1 else "micro-batches"
    tower = ", the tower frozen" if run.recipe.model.freeze_vision else ""
    phases = step_seconds(run, stage)
    listed = ", ".join(f"{name} {value:.1f}" for name, value in phases.items())
    return [
        f"  trains {run.trainable / 1e6:,.1f} million parameters{tower}",
        (
            f"  {updates} optimizer step{'s' * (updates > 1)} per step, each of {plan.samples} "
            f"samples x {plan.sample_tokens} tokens (image {run.image_tokens}, prompt "
            f"{run.prompt_tokens}, response {plan.response_tokens})"
        ),
        (
            f"  {plan.micro_batches} {batches} per rank and optimizer step, each of at most "
            f"{plan.per_micro_batch} samples, {plan.images} images, {plan.budget} tokens "
            f"({mean:.0f} on average)"
        ),
        "",
        *_memory_text(run, stage),
        "",
        "  seconds per step (not measured):",
        f"  {listed}; sum {sum(phases.values()):.1f}",
        *_total_text(part, f"{part.steps} steps"),
    ]


def _distill_text(part: Part) -> list[str]:
    run, planned = part.run, phases_of(part.run)
    asked = questions(run)
    rows = []
    for phase in planned:
        work, gpus = phase.work, phase.work.gpus
        made = phase.model not in {run.recipe.expand(run.recipe.model.path), *run.others}
        model = "a model of the run" if made else phase.model
        rows.append(
            f"  {phase.name}: {model}, {sizes.parameters(work.config).total / 1e6:,.1f} "
            f"million parameters; {phase.engines} engine{'s' * (phase.engines > 1)} of {gpus} "
            f"GPU{'s' * (gpus > 1)}; prompts of {work.prompt_tokens} tokens, {work.n} x "
            f"{work.response_tokens}"
        )
    items = {phase.name: engine_items(phase.work) for phase in planned}
    lines = [
        f"  {asked:,} questions" if asked else "  questions: unknown",
        *rows,
        "",
        *_items_text(items, run),
    ]
    for phase in planned:
        tokens = phase.work.kv_tokens
        context = phase.work.prompt_tokens + phase.work.response_tokens
        lines.append(
            f"  {phase.name}: the KV cache of an engine holds {tokens:,} tokens, "
            f"{tokens // context:,} expected sequences"
        )
    return [*lines, *_total_text(part, "in all")]


def _total_text(part: Part, what: str) -> list[str]:
    """Hours in all, and what of them is not the work itself."""
    spent = part_seconds(part)
    if not spent:
        if part.table == "distill":
            return ["  distill.data is not here: --assume.questions=N gives the hours"]
        return ["  sft.data is not here: --assume.sft_rows=N gives the number of steps"]
    total = sum(spent.values())
    listed = ", ".join(
        f"{_counted(part, name)} {value / 3600:.2f}"
        for name, value in spent.items()
        if value and name != "steps"
    )
    return [
        f"  {what}: {total / 3600:.2f} hours = {total / 86400:.3f} days; of these hours, {listed}"
    ]


def _counted(part: Part, name: str) -> str:
    """What seconds are spent on, and how often where it is more than one thing."""
    if name == "validations":
        return f"{looks(part)} {name}"
    if name == "checkpoints":
        return f"{saves(part)} {name} of {checkpoint_bytes(part.run) / 1e9:.0f} GB"
    return name


def _memory_text(run: Run, stage: Stage) -> list[str]:
    held = memory(run, stage)
    lines = _items_text(held.moments, run)
    if held.kv_tokens:
        context = run.prompt_tokens + run.response_tokens
        lines.append(
            f"  the KV cache holds {held.kv_tokens:,} tokens, {held.kv_tokens // context:,} "
            "expected sequences; the sleeping engines' weights take "
            f"{held.host / GIB:.0f} GiB of host memory"
        )
    return lines


def _items_text(moments: Mapping[str, Mapping[str, float]], run: Run) -> list[str]:
    """A table of bytes: a row for each item, a column for each moment."""
    names = list(dict.fromkeys(name for items in moments.values() for name in items))
    titles = [moment.replace("update, ", "") for moment in moments]
    lines = [f"  {'GiB per GPU':<58}" + "".join(f"{title:>12}" for title in titles)]
    for name in names:
        cells = [items.get(name) for items in moments.values()]
        shown = ["-" if cell is None else f"{cell / GIB:.2f}" for cell in cells]
        lines.append(f"  {name:<58}" + "".join(f"{cell:>12}" for cell in shown))
    totals = [sum(items.values()) / GIB for items in moments.values()]
    size = run.node.gpu.memory_gib
    lines.append(f"  {'total':<58}" + "".join(f"{total:>12.2f}" for total in totals))
    room = ["TOO MUCH" if total > size else f"{size - total:.2f}" for total in totals]
    return [*lines, f"  {f'free of {size:.1f}':<58}" + "".join(f"{cell:>12}" for cell in room)]


def _assumed_text(run: Run) -> list[str]:
    pairs = [f"{f.name}={getattr(run.assumed, f.name):g}" for f in fields(Assumptions)]
    lines = ["assumed, not measured; replaced by --assume.KEY=VALUE:"]
    for pair in pairs:
        if len(lines) == 1 or len(lines[-1]) + len(pair) > 98:
            lines.append("  " + pair)
        else:
            lines[-1] += ", " + pair
    return [
        *lines,
        "FLOP seconds = FLOPs / (product rate x efficiency); update = 3 forwards, and the blocks",
        "once more with checkpointing; decoding, per token of the batch until its longest answer =",
        "(weights + cache of what runs) / (bandwidth x efficiency) + overhead; sync = float32",
        "weights over the links, cast, and the engine's wake and sleep over the host's link.",
        "Traces: batches of distill.shard questions per engine, each until its longest answer.",
    ]
