"""``python -m ovlt.cycle RECIPE``: SFT and GRPO in turns, from images and questions to a model.

    base -> traces of a teacher -> SFT-1 -> GRPO-1 -> its own traces -> SFT-2 (from the base) -> ...

Every stage is a command of its own (``ovlt.cycle.stages`` says which, with which recipe), started
here one after the other and measured on the same held-out questions. ``cycle.json`` in the run
folder says what is done: killed at any moment, the same command goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.config.command_line import command_line
from ovlt.config.load import recipe_from
from ovlt.cycle.controls import ALL, chosen, controls
from ovlt.cycle.stages import Step, steps
from ovlt.cycle.state import State, only_here
from ovlt.system import env

SUMMARY = """\
SFT and GRPO in turns, each iteration on traces of the one before.

  --dry-run         print the stages, what they need, and what is missing
  --until=STAGE     stop after that stage
  --seeds=0,1,2     one run for each; run.folder must hold {seed}
  --controls        then the comparisons: SFT filters, restart or continue, SFT or RL alone
  --controls=rejection,filter   only these of them: single (sft-only, rejection, rl-only),
                    restart, filter (none, max_words, reflections)
"""


def main(argv: Sequence[str]) -> None:
    """Run the cycle, or print its plan (--dry-run)."""
    options, rest = Options.read(argv)
    recipe = command_line(
        "cycle",
        SUMMARY,
        ("cycle", "distill", "sft", "grpo", "evaluate", "run", "model", "data", "engine", "reward"),
        rest,
    )
    try:
        runs = [with_seed(recipe, seed) for seed in options.seeds or [recipe.run.seed]]
        if len({run.folder for run in runs}) < len(runs):
            raise ValueError("--seeds needs {seed} in run.folder, or they would share one folder")
        if options.until and options.controls:
            raise ValueError("--controls compare with the whole cycle: leave --until out")
        planned = [up_to(steps(run), options.until) for run in runs]
        for run, todo in zip(runs, planned, strict=True):
            if options.dry_run:
                print(plan_of(run, todo))
            else:
                cycle(run, todo, options.controls)
    except (ValueError, OSError) as error:
        raise SystemExit(f"ovlt cycle: {error}") from None
    if not options.dry_run:
        from ovlt.report.cycle_table import cycle_markdown

        print(f"\n{cycle_markdown([run.folder for run in runs])}")


def cycle(recipe: Recipe, todo: Sequence[Step], compare: Sequence[str]) -> None:
    """What is not done of one run: the stages in order, then the controls named ``compare``."""
    from ovlt.report.command import write_report
    from ovlt.report.cycle_table import cycle_markdown
    from ovlt.run.provenance import write_about
    from ovlt.smoke import make as smoke
    from ovlt.system import launch
    from ovlt.system.files import write_whole

    ranks = recipe.cycle.ranks or launch.default_ranks()
    os.environ["OMP_NUM_THREADS"] = str(launch.threads_of(ranks))
    # For the stages: some of it must be set before they start.
    env.apply("cpu" if recipe.run.device == "cpu" else env.machine(), shared=True)

    def run(step: Step) -> None:
        if state.is_done(step):
            return
        print(f"\n=== {step.name}: {step.title}", flush=True)
        with state.running(step):
            smoke.make_missing(step.recipe, step.table, ranks)
            smoke.run_stage(step.table, step.recipe, ranks)
        write_report(recipe.folder)
        write_whole(recipe.folder / "cycle.md", cycle_markdown([recipe.folder]).encode("utf-8"))

    with only_here(recipe.folder):
        state = State(recipe.folder, recipe.run.seed)
        state.announce(todo)
        if lacking := missing([step for step in todo if not state.is_done(step)], todo):
            raise ValueError(
                f"missing: {', '.join(map(str, lacking))}; --dry-run says which stage needs what"
            )
        write_about(recipe.folder, recipe.run.seed, "ovlt.cycle")
        for step in todo:
            run(step)
        for step in controls(recipe, state) if compare else ():
            if chosen(step, compare):
                state.announce([step])
                run(step)
    print(recipe.folder / "report.html")


def plan_of(recipe: Recipe, todo: Sequence[Step]) -> str:
    """What would be run, and what it needs: for people."""
    made = {step.output: step.name for step in todo if step.output}
    lacking = missing(todo, todo)
    lines = [f"{recipe.folder}: {len(todo)} stages"]
    for step in todo:
        lines.append(f"  {step.name:<16} python -m ovlt.{step.table}  {step.title}")
        for what, path in needs(step):
            if path in made:
                state = f"from {made[path]}"
            elif path in lacking:
                state = "MISSING"
            else:
                state = "there" if path.exists() else "not there yet; made by the recipe itself"
            lines.append(f"      {what:<12} {path}  ({state})")
    if lacking:
        lines.append(f"missing: {', '.join(map(str, lacking))}")
    return "\n".join(lines)


def missing(wanted: Sequence[Step], todo: Sequence[Step]) -> list[Path]:
    """What the ``wanted`` of the stages ``todo`` read, that is not there and that nobody makes."""
    made = {step.output for step in todo}
    found = [
        path
        for step in wanted
        for _, path in needs(step)
        if path not in made and not path.exists() and not is_ours(step.recipe, path)
    ]
    return list(dict.fromkeys(found))


def needs(step: Step) -> list[tuple[str, Path]]:
    """Files and model folders a stage reads, with what each is to it."""
    recipe = step.recipe
    table = getattr(recipe, step.table)
    base = recipe.model.path
    if step.table == "distill":
        named = [("questions", table.data), ("captioner", table.captioner or base)]
        named.append(("teacher", table.teacher))
    elif step.table == "evaluate":
        named = [("model", table.model or base), ("held-out", recipe.data.held_out)]
    else:
        named = [("start", table.start or base), ("data", table.data)]
        named.append(("validation", recipe.data.validation if table.eval_every else ""))
        named.append(("held-out", recipe.data.held_out))
    return [(what, Path(recipe.expand(path))) for what, path in named if path]


def is_ours(recipe: Recipe, path: Path) -> bool:
    """Whether the smoke world makes this where it is missing."""
    ours = (recipe.synthetic.folder, recipe.base.folder, recipe.teacher.folder)
    return any(path.is_relative_to(folder) for folder in ours)


def up_to(todo: Sequence[Step], until: str) -> list[Step]:
    """The stages as far as the one named ``until``; all for "". Raises ValueError."""
    names = [step.name for step in todo]
    if until and until not in names:
        raise ValueError(f"--until={until} is no stage of this cycle: {', '.join(names)}")
    return list(todo[: names.index(until) + 1] if until else todo)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    tree = recipe.resolved()
    tree["run"]["seed"] = seed
    return recipe_from(tree)


@dataclass(frozen=True)
class Options:
    """What the command takes besides keys of the recipe."""

    dry_run: bool = False
    controls: tuple[str, ...] = ()
    until: str = ""
    seeds: tuple[int, ...] = ()

    @staticmethod
    def read(argv: Sequence[str]) -> tuple[Options, list[str]]:
        """Options, and the words that are left for the recipe. Ends the process on a mistake."""
        values: dict[str, Any] = {}
        rest, words = [], list(argv)
        while words:
            word = words.pop(0)
            key, equals, value = word.partition("=")
            if word == "--dry-run":
                values["dry_run"] = True
            elif key == "--controls":
                values["controls"] = tuple(value.split(",")) if equals else ALL
            elif key in ("--until", "--seeds"):
                value = value if equals else words.pop(0) if words else ""
                values[key[2:]] = value
            else:
                rest.append(word)
        if unknown := [word for word in values.get("controls", ()) if word not in ALL]:
            raise SystemExit(f"ovlt cycle: --controls={unknown[0]}: choose among {', '.join(ALL)}")
        if "seeds" in values:
            try:
                values["seeds"] = tuple(int(seed) for seed in str(values["seeds"]).split(","))
            except ValueError:
                raise SystemExit(
                    f"ovlt cycle: --seeds={values['seeds']} should be like --seeds=0,1,2"
                ) from None
        return Options(**values), rest
