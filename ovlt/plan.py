"""``python -m ovlt.plan [RECIPE] [--hardware=h100x8]``: will it fit, and how long will it take.

Prints parameters, memory of each GPU by item, micro-batches, seconds of each phase and days, before
anything is loaded: no weights, no data, no GPU and no torch are needed. Ends with status 1, and a
sentence for each problem, where the recipe cannot fit. Seconds rest on assumptions, which are
printed with them and can be replaced (``--assume.response_tokens=600``).
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
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
from ovlt.fit import problems
from ovlt.hardware import GPUS, node
from ovlt.model.qwen2_5_vl_sizes import read_config, tokens_per_image
from ovlt.recipe import REPOSITORY, load_recipe

SIZES = REPOSITORY / "recipes" / "models"
USAGE = f"""usage: python -m ovlt.plan [RECIPE.toml] [--table.key=value ...]

Memory of each GPU, micro-batches, seconds and days of a recipe, before anything is loaded.
  --hardware=h100x8       CHIPxCOUNT, one node; chips: {", ".join(GPUS)}
  --sizes=FILE            a config.json; else that of model.path, else recipes/models/ by name
  --assume.KEY=VALUE      replaces an assumption; the keys stand at the end of the output
  --table.key=value       a key of the recipe, as in every command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan -> 0 it fits, 1 it cannot, 2 a mistake in the command."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    try:
        run, stages, origin = read(argv)
        print(text(run, stages, origin))
    except ValueError as error:
        print(f"ovlt.plan: {error}", file=sys.stderr)
        return 2
    found = [sentence for stage in stages for sentence in problems(run, stage)]
    for sentence in found:
        print(f"ovlt.plan: {sentence}", file=sys.stderr)
    return 1 if found else 0


def read(argv: Sequence[str]) -> tuple[Run, list[Stage], Path]:
    """Command line -> the run, the stages it has data for, the file its sizes come from."""
    words = [w for word in argv for w in _split(word)]
    path, overrides, assumed = None, [], {}
    options = {"hardware": "h100x8", "sizes": ""}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if path is not None:
                raise ValueError(f"more than one recipe given: {path}, {word}")
            path = word
            continue
        key, value = word[2:], words.pop(0) if words else ""
        if key in options:
            options[key] = value
        elif key.startswith("assume."):
            assumed[key.removeprefix("assume.")] = value
        else:
            overrides.append(f"--{key}={value}")
    recipe = load_recipe(path, overrides)
    stages: list[Stage] = []
    stages += ["sft"] if recipe.sft.data else []
    stages += ["grpo"] if recipe.grpo.data else []
    if not stages:
        raise ValueError("the recipe has neither sft.data nor grpo.data, so there is nothing to do")
    origin = sizes_file(recipe, options["sizes"])
    return (
        Run(recipe, read_config(origin), node(options["hardware"]), assumptions(assumed)),
        stages,
        origin,
    )


def _split(word: str) -> list[str]:
    key, equals, value = word.partition("=")
    return [key, value] if equals and word.startswith("--") else [word]


def assumptions(given: dict[str, str]) -> Assumptions:
    """Assumptions with some replaced. Raises ValueError for an unknown key or no number."""
    kinds = {f.name: type(f.default) for f in fields(Assumptions)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(kinds)}"
            raise ValueError(f"unknown assumption '{key}'; {hint}")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise ValueError(f"--assume.{key}={value} is no {kinds[key].__name__}") from None
        if not 0 <= values[key] < math.inf or (values[key] == 0 and not _may_be_zero(key)):
            raise ValueError(f"--assume.{key}={value} must be a finite number above 0")
    return Assumptions(**values)


def _may_be_zero(key: str) -> bool:
    return not key.endswith(("efficiency", "rate", "response_tokens"))


def sizes_file(recipe: Recipe, given: str = "") -> Path:
    """The model folder's config.json, else the shipped one of that name. Raises ValueError."""
    folder = Path(recipe.expand(recipe.model.path))
    if given or (folder / "config.json").is_file():
        return Path(given) if given else folder / "config.json"
    name = re.sub(r"\W+", "_", folder.name.lower().replace(".", "_"))
    shipped = sorted(SIZES.glob("*.json"))
    for file in shipped:
        if name.startswith(file.stem):
            return file
    raise ValueError(
        f"model.path='{folder}' holds no config.json, and recipes/models/ none of that name: give "
        f"one with --sizes=FILE, e.g. {shipped[0].relative_to(REPOSITORY)}"
    )


# --- text --------------------------------------------------------------------------------------
def text(run: Run, stages: Sequence[Stage], origin: Path) -> str:
    p, gpu = run.parts, run.node.gpu
    shown = origin.relative_to(REPOSITORY) if origin.is_relative_to(REPOSITORY) else origin
    head = "tied to the embedding" if p.head == 0 else f"{p.head / 1e6:,.1f}"
    lines = [
        f"{run.node.name}: {gpu.memory_gib:.1f} GiB, {gpu.flops / 1e12:.0f} TFLOP/s, "
        f"{gpu.bandwidth / 1e12:.2f} TB/s each; compute in {'bfloat16' if run.itemsize == 2 else 'float32'}",
        f"sizes: {shown}",
        "parameters, millions: "
        f"tower {p.tower / 1e6:,.1f} + decoder {p.decoder / 1e6:,.1f} + embedding "
        f"{p.embedding / 1e6:,.1f} + head {head} = {p.total / 1e6:,.1f}; trained {run.trainable / 1e6:,.1f}",
    ]
    for stage in stages:
        lines += ["", *_stage_text(run, stage)]
    return "\n".join([*lines, "", *_assumed_text(run)])


def _stage_text(run: Run, stage: Stage) -> list[str]:
    plan = layout(run, stage)
    image = tokens_per_image(run.config, run.grid)
    steps = num_steps(run, stage)
    updates = 1 if stage == "sft" else run.recipe.grpo.updates_per_rollout
    lines = [
        f"[{stage}]",
        f"  {updates} optimizer step{'s' * (updates > 1)} per step, each of {plan.samples} samples "
        f"x {plan.sample_tokens} tokens (image {image}, prompt {run.prompt_tokens}, response "
        f"{plan.response_tokens})",
        f"  {plan.micro_batches} micro-batch{'es' * (plan.micro_batches > 1)} per rank and optimizer "
        f"step, of at most {plan.per_micro_batch} samples and {plan.images} images "
        f"({plan.budget} tokens), {_mean_tokens(run, stage):.0f} on average",
        "",
        *_memory_text(run, stage),
        "",
        *_seconds_text(run, stage, steps),
    ]
    return lines


def _mean_tokens(run: Run, stage: Stage) -> float:
    plan = layout(run, stage)
    return plan.samples * plan.sample_tokens / plan.micro_batches / run.node.count


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
            f"  the KV cache holds {held.kv_tokens:,} tokens, {held.kv_tokens // context:,} expected "
            f"sequences; the sleeping engines' weights take {held.host / GIB:.0f} GiB of host memory"
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
    lines = [f"  seconds per step (not measured): {listed}; sum {step:.1f}"]
    if not steps:
        return [*lines, "  sft.data is not here: --assume.sft_rows=N gives the number of steps"]
    saves = 1 + (steps - 1) // cfg.save_every if cfg.save_every else 1
    questions = run.recipe.data.validation_questions
    measured = steps // cfg.eval_every if cfg.eval_every and run.recipe.data.validation else 0
    validation = measured * 2 * generation_seconds(run, questions, 1)  # greedy, and sampled
    checkpoints = saves * checkpoint_bytes(run) / run.assumed.disk_rate
    total = steps * step + validation + checkpoints
    lines.append(
        f"  {steps} steps: {total / 3600:.2f} hours = {total / 86400:.3f} days, of which validation "
        f"{validation / 3600:.2f} and {saves} checkpoints of {checkpoint_bytes(run) / 1e9:.0f} GB "
        f"{checkpoints / 3600:.2f} hours"
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
        "FLOP seconds = FLOPs / (product rate x efficiency); update = 3 forwards, and the blocks once",
        "more with checkpointing; decoding = (weights + cache of what runs) / (bandwidth x efficiency)",
        "per token of the batch, until its longest answer; sync = float32 weights over the links, cast,",
        "and the engine's wake and sleep over the host's.",
    ]


if __name__ == "__main__":
    sys.exit(main())
