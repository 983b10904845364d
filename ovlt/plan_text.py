"""What ``ovlt.plan`` prints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ovlt.estimate import (
    GIB,
    Assumptions,
    Run,
    Stage,
    checkpoint_bytes,
    generation_seconds,
    layout,
    memory,
    step_seconds,
)
from ovlt.model.qwen2_5_vl_sizes import tokens_per_image
from ovlt.recipe import REPOSITORY


def text(run: Run, stages: Sequence[Stage], origin: Path) -> str:
    """The whole output, for the stages whose samples fit into their token budget."""
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
            f"embedding {p.embedding / 1e6:,.1f} + head {head} = {p.total / 1e6:,.1f}; "
            f"trained {run.trainable / 1e6:,.1f}"
        ),
    ]
    for stage in stages:
        lines += ["", *_stage_text(run, stage)]
    return "\n".join([*lines, "", *_assumed_text(run)])


def _stage_text(run: Run, stage: Stage) -> list[str]:
    try:
        plan = layout(run, stage)
    except ValueError as error:
        return [f"[{stage}]", f"  {error}"]
    image = tokens_per_image(run.config, run.grid)
    updates = 1 if stage == "sft" else run.recipe.grpo.updates_per_rollout
    mean = plan.samples * plan.sample_tokens / plan.micro_batches / run.node.count
    batches = "micro-batch" if plan.micro_batches == 1 else "micro-batches"
    return [
        f"[{stage}]",
        (
            f"  {updates} optimizer step{'s' * (updates > 1)} per step, each of {plan.samples} "
            f"samples x {plan.sample_tokens} tokens (image {image}, prompt {run.prompt_tokens}, "
            f"response {plan.response_tokens})"
        ),
        (
            f"  {plan.micro_batches} {batches} per rank and optimizer step, each of at most "
            f"{plan.per_micro_batch} samples, {plan.images} images, {plan.budget} tokens "
            f"({mean:.0f} on average)"
        ),
        "",
        *_memory_text(run, stage),
        "",
        *_seconds_text(run, stage, num_steps(run, stage)),
    ]


def _memory_text(run: Run, stage: Stage) -> list[str]:
    held = memory(run, stage)
    names = list(dict.fromkeys(name for items in held.moments.values() for name in items))
    titles = [moment.replace("update, ", "") for moment in held.moments]
    lines = [f"  {'GiB per GPU':<58}" + "".join(f"{title:>12}" for title in titles)]
    for name in names:
        cells = [items.get(name) for items in held.moments.values()]
        shown = ["-" if cell is None else f"{cell / GIB:.2f}" for cell in cells]
        lines.append(f"  {name:<58}" + "".join(f"{cell:>12}" for cell in shown))
    totals = [held.total(moment) / GIB for moment in held.moments]
    size = run.node.gpu.memory_gib
    lines.append(f"  {'total':<58}" + "".join(f"{total:>12.2f}" for total in totals))
    room = ["TOO MUCH" if total > size else f"{size - total:.2f}" for total in totals]
    lines.append(f"  {f'free of {size:.1f}':<58}" + "".join(f"{cell:>12}" for cell in room))
    if held.kv_tokens:
        context = run.prompt_tokens + run.response_tokens
        lines.append(
            f"  the KV cache holds {held.kv_tokens:,} tokens, {held.kv_tokens // context:,} "
            "expected sequences; the sleeping engines' weights take "
            f"{held.host / GIB:.0f} GiB of host memory"
        )
    return lines


def num_steps(run: Run, stage: Stage) -> int:
    """Of the recipe, or of the rows of sft.data; 0 where neither is known."""
    if stage == "grpo":
        return run.recipe.grpo.steps
    cfg = run.recipe.sft
    rows = run.assumed.sft_rows or _rows(Path(run.recipe.expand(cfg.data)))
    return cfg.steps or math.ceil(cfg.epochs * rows / cfg.batch_samples)


def _rows(file: Path) -> int:
    if file.suffix == ".parquet" and file.is_file():
        from pyarrow import parquet

        return int(parquet.read_metadata(file).num_rows)
    if file.suffix == ".jsonl" and file.is_file():
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    if file.suffix == ".json" and file.is_file():
        return len(json.loads(file.read_text(encoding="utf-8")))
    return 0


def _seconds_text(run: Run, stage: Stage, steps: int) -> list[str]:
    cfg = getattr(run.recipe, stage)
    phases = step_seconds(run, stage)
    step = sum(phases.values())
    listed = ", ".join(f"{name} {value:.1f}" for name, value in phases.items())
    lines = ["  seconds per step (not measured):", f"  {listed}; sum {step:.1f}"]
    if not steps:
        return [*lines, "  sft.data is not here: --assume.sft_rows=N gives the number of steps"]
    saves = math.ceil(steps / cfg.save_every) if cfg.save_every else 1
    questions = run.recipe.data.validation_questions
    looks = math.ceil(steps / cfg.eval_every) if cfg.eval_every else 0
    validation = looks * 2 * generation_seconds(run, questions, 1)  # greedy, and sampled
    checkpoints = saves * checkpoint_bytes(run) / run.assumed.disk_rate
    total = steps * step + validation + checkpoints
    lines.append(
        f"  {steps} steps: {total / 3600:.2f} hours = {total / 86400:.3f} days; of these, "
        f"{looks} validations {validation / 3600:.2f} hours and {saves} checkpoints of "
        f"{checkpoint_bytes(run) / 1e9:.0f} GB {checkpoints / 3600:.2f} hours"
    )
    return lines


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
    ]
