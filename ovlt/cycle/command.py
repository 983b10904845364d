"""``ovlt cycle RECIPE``: SFT and GRPO in turns, from images and questions to a model.

    base -> traces of a teacher -> SFT-1 -> GRPO-1 -> its own traces -> SFT-2 (from the base) -> ...

Every stage is a command of its own (``ovlt.cycle.stages`` says which, with which recipe), started
here one after the other and measured on the same held-out questions. ``cycle.json`` in the run
folder says what is done: if the cycle is killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovlt.benchmarks.places import is_measured
from ovlt.config import Recipe
from ovlt.config.command_line import command_line
from ovlt.config.load import recipe_from
from ovlt.config.trees import merged
from ovlt.cycle.controls import ALL, controls, is_chosen
from ovlt.cycle.record import CycleRecord, only_here
from ovlt.cycle.stages import CycleStage, benchmarks_of, cycle_stages
from ovlt.report.command import write_report
from ovlt.report.cycle_table import cycle_markdown
from ovlt.run.provenance import write_about
from ovlt.smoke.make import SmokeInputs, make_missing, run_stage
from ovlt.system import env, launch
from ovlt.system.digest import digest_of, file_digest, tree_digest
from ovlt.system.files import write_whole
from ovlt.system.hub import is_hub_name

WEIGHTS_BYTES = 64 << 20  # files of weights above this are sampled


@dataclass(frozen=True)
class Options:
    """What the command takes besides recipes and their keys."""

    dry_run: bool
    until: str  # empty: to the end
    seeds: tuple[int, ...]  # empty: that of the recipe
    controls: tuple[str, ...]  # names out of ALL


def main(argv: Sequence[str]) -> None:
    """Run the cycle, or print its plan (--dry-run)."""
    options, words = read_options(argv)
    recipe = command_line("cycle", "", (), words)  # `ovlt` itself answers --help
    tree = recipe.resolved()
    try:
        runs = [
            recipe_from(merged(tree, {"run": {"seed": seed}}))
            for seed in options.seeds or [recipe.run.seed]
        ]
        if len({run.folder for run in runs}) < len(runs):
            raise ValueError("--seeds needs {seed} in run.folder, or they would share one folder")
        if options.until and options.controls:
            raise ValueError("--controls compare with the whole cycle: leave --until out")
        stages_of_runs = [up_to(cycle_stages(run), options.until) for run in runs]
        for run, stages in zip(runs, stages_of_runs, strict=True):
            if options.dry_run:
                print(plan_text(run.folder, stages))
            else:
                run_cycle(run, stages, options.controls)
    except (ValueError, OSError) as error:
        raise SystemExit(f"ovlt cycle: {error}") from None
    if not options.dry_run:
        print(f"\n{cycle_markdown([run.folder for run in runs])}")


def run_cycle(recipe: Recipe, stages: Sequence[CycleStage], chosen: Sequence[str]) -> None:
    """Run the stages that are not done, then the ``chosen`` controls. Raises ValueError."""
    folder = recipe.folder
    ranks = recipe.cycle.ranks or launch.default_ranks()
    os.environ["OMP_NUM_THREADS"] = str(launch.threads_of(ranks))
    # For the stages: some of it must be set before they start.
    env.apply("cpu" if recipe.run.device == "cpu" else env.machine(), shared=True)

    def run(stage: CycleStage) -> None:
        asking = benchmarks_of(recipe.evaluate.benchmark.names, stage)
        is_asked = asking is None or is_measured(asking.evaluate.benchmark)
        if record.is_done(stage) and is_asked:
            return
        if not record.is_done(stage):
            print(f"\n=== {stage.name}: {stage.title}", flush=True)
            with record.running(stage):
                make_missing(stage.recipe, stage.table, ranks)
                inputs = digests_of(stage)
                run_stage(stage.table, stage.recipe, ranks)
                record.made_of(stage.name, inputs)
        if asking is not None and not is_asked:
            print(f"\n=== {stage.name}: public benchmarks", flush=True)
            run_stage("evaluate", asking, ranks)
        write_report(folder)
        write_whole(folder / "cycle.md", cycle_markdown([folder]).encode("utf-8"))

    with only_here(folder):
        record = CycleRecord(folder, recipe.run.seed)
        record.add(stages)
        if paths := missing([stage for stage in stages if not record.is_done(stage)], stages):
            raise ValueError(
                f"missing: {', '.join(map(str, paths))}; --dry-run says which stage needs what"
            )
        if not recipe.run.accept_changes:
            for stage in filter(record.is_done, stages):
                if changed := record.changed_inputs(stage.name, digests_of(stage)):
                    raise ValueError(
                        f"{stage.name} is done, and was made with other contents of "
                        f"{', '.join(changed)} than there are now: put them back, go on all the "
                        "same with --run.accept_changes=true, or give another --run.folder"
                    )
        write_about(folder, recipe.run.seed, "cycle")
        check([stage for stage in stages if not record.is_done(stage)])
        for stage in stages:
            run(stage)
        if chosen:
            for control in controls(stages, record, restarts=recipe.cycle.restart == "base"):
                if is_chosen(control, chosen):
                    record.add([control])
                    run(control)
    print(folder / "report.html")


def check(stages: Sequence[CycleStage]) -> None:
    """Look at everything that ``stages`` name, before the first. Ends the process on a mistake."""
    if not stages:
        return
    print("checking models, rows, rewards and limits of every stage", flush=True)
    words = []
    for stage in stages:
        path = stage.recipe.folder / "recipes" / f"{stage.name}.json"
        words.append(f"{stage.name}:{stage.table}={launch.write_recipe(stage.recipe, path)}")
    launch.python_module("ovlt.cycle.check", words)


def plan_text(folder: Path, stages: Sequence[CycleStage]) -> str:
    """Return what a cycle in ``folder`` would run, and what that needs: for people."""
    makers = {stage.output: stage.name for stage in stages if stage.output}
    absent = missing(stages, stages)
    lines = [f"{folder}: {len(stages)} stages"]
    for stage in stages:
        lines.append(f"  {stage.name:<16} ovlt {stage.table:<9} {stage.title}")
        for role, path in inputs_of(stage):
            if path in makers:
                state = f"from {makers[path]}"
            elif path in absent:
                state = "MISSING"
            else:
                made = "not there yet; made by the recipe itself"
                state = "there" if path.exists() or is_hub_name(path) else made
            lines.append(f"      {role:<12} {path}  ({state})")
    if absent:
        lines.append(f"missing: {', '.join(map(str, absent))}")
    return "\n".join(lines)


def missing(stages: Sequence[CycleStage], cycle: Sequence[CycleStage]) -> list[Path]:
    """Return the inputs of ``stages`` that neither exist nor are made by a stage of ``cycle``."""
    outputs = {stage.output for stage in cycle}
    paths = [
        path
        for stage in stages
        for _, path in inputs_of(stage)
        if path not in outputs and not path.exists() and not SmokeInputs(stage.recipe).makes(path)
        if not is_hub_name(path)
    ]
    return list(dict.fromkeys(paths))


def inputs_of(stage: CycleStage) -> list[tuple[str, Path]]:
    """Return the files and model folders that a stage reads, each with its role."""
    recipe = stage.recipe
    base, held_out = recipe.model.path, ("held-out", recipe.data.held_out)
    if stage.table == "distill":
        distill = recipe.distill
        inputs = [("questions", distill.data), ("captioner", distill.captioner or base)]
        inputs.append(("teacher", distill.teacher))
    elif stage.table == "evaluate":
        inputs = [("model", recipe.evaluate.model or base), held_out]
    else:
        table = recipe.sft if stage.table == "sft" else recipe.grpo
        inputs = [("start", table.start or base), ("data", table.data)]
        inputs.append(("validation", recipe.data.validation if table.eval_every else ""))
        inputs.append(held_out)
    return [(role, Path(recipe.expand(path))) for role, path in inputs if path]


def digests_of(stage: CycleStage) -> dict[str, str]:
    """Return the digests of the inputs of a stage that are there, by path."""
    return {str(path): _digest(path) for _, path in inputs_of(stage) if path.exists()}


@functools.cache  # stages share most of their inputs, and nothing changes one while they run
def _digest(path: Path) -> str:
    if path.is_file():
        return tree_digest(path)
    # A model folder: its tables and weights, the latter in samples.
    files = [f for f in sorted(path.iterdir()) if f.suffix in (".json", ".jinja", ".safetensors")]
    return digest_of(part for f in files for part in (f.name, file_digest(f, WEIGHTS_BYTES)))


def up_to(stages: Sequence[CycleStage], until: str) -> list[CycleStage]:
    """Return the stages as far as the one named ``until``; all for "". Raises ValueError."""
    names = [stage.name for stage in stages]
    if until and until not in names:
        raise ValueError(f"--until={until} is no stage of this cycle: {', '.join(names)}")
    return list(stages[: names.index(until) + 1] if until else stages)


def read_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """Return the options, and the words left for the recipe. Ends the process on a mistake.

    ``--controls`` alone means all of them; its names follow after ``=`` only, because a word after
    a space is a recipe.
    """
    words = [f"--controls={','.join(ALL)}" if word == "--controls" else word for word in argv]
    parser = argparse.ArgumentParser("ovlt cycle", add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--until", default="")
    parser.add_argument("--seeds")
    parser.add_argument("--controls")
    given, rest = parser.parse_known_args(words)
    names = tuple(given.controls.split(",")) if given.controls is not None else ()
    if unknown := [name for name in names if name not in ALL]:
        raise SystemExit(f"ovlt cycle: --controls={unknown[0]}: choose among {', '.join(ALL)}")
    try:
        seeds = tuple(map(int, given.seeds.split(","))) if given.seeds is not None else ()
    except ValueError:
        raise SystemExit(
            f"ovlt cycle: --seeds={given.seeds} should be like --seeds=0,1,2"
        ) from None
    return Options(given.dry_run, given.until, seeds, names), rest
