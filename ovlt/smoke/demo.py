"""``ovlt demo``: the main job end to end on the smoke recipe (``make demo``).

World, base model, SFT, GRPO, held-out figures and report, for one seed. ``--results`` (``make
results``) does three seeds and writes the table of docs/results.md. The controls of an honest
comparison (SFT alone, rejection sampling alone, other filters) are those of ``ovlt cycle``.

Everything is resumable: what is done is not done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovlt.config import EvaluateConfig, Recipe
from ovlt.config.command_line import command_line
from ovlt.config.load import REPOSITORY, recipe_from
from ovlt.config.trees import merged
from ovlt.report.command import summarize, write_report
from ovlt.report.summary import MODES, StageSummary
from ovlt.report.text import DASH, percent, signed
from ovlt.run.provenance import commit, hardware, write_about
from ovlt.run.version import require_same_recipe
from ovlt.smoke.make import is_done, make_missing, run_stage
from ovlt.system import env, launch
from ovlt.system.files import write_whole

SEEDS = (0, 1, 2)  # of --results
STAGES = {"sft": "SFT on teacher traces", "grpo": "**GRPO** from SFT"}
RESULTS = REPOSITORY / "docs" / "results.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main(argv: Sequence[str]) -> None:
    """Run what is not done of one seed, or of three with ``--results``; print the figures."""
    recipe = command_line(
        "demo",
        "World, base, SFT, GRPO, figures, report. --results: three seeds.",
        ("demo", "synthetic", "base", "sft", "grpo"),
        [word for word in argv if word != "--results"],
    )
    env.apply("cpu" if recipe.run.device == "cpu" else env.machine(), shared=True)
    ranks = recipe.demo.ranks or launch.default_ranks()
    os.environ["OMP_NUM_THREADS"] = str(launch.threads_of(ranks))
    started, tree = time.time(), recipe.resolved()
    by_seed: dict[int, dict[str, StageSummary]] = {}
    for seed in SEEDS if "--results" in argv else (recipe.run.seed,):
        run = recipe_from(merged(tree, {"run": {"seed": seed, "resume": "auto"}}))
        try:
            run_demo(run, ranks)
        except ValueError as error:
            raise SystemExit(f"ovlt demo: {error}") from None
        report = write_report(run.folder)
        stages = summarize(run.folder)["stages"]
        by_seed[seed] = {stage["name"]: stage for stage in stages if stage["name"] in STAGES}
        print(report)
    print(f"\n{table(by_seed)}\n\n{(time.time() - started) / 60:.1f} minutes with {ranks} ranks")
    if "--results" in argv:
        write_results(results(by_seed, recipe.evaluate, ranks))


def run_demo(recipe: Recipe, ranks: int) -> None:
    """Run SFT and GRPO of one seed, as far as they are not done. Raises ValueError."""
    make_missing(recipe, "sft", ranks)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    base = recipe.folder / Path(recipe.base.folder).name  # so that the report shows its stage
    if not base.exists() and not base.is_symlink():
        base.symlink_to(os.path.relpath(recipe.base.folder, recipe.folder))
    write_about(recipe.folder, recipe.run.seed, "demo")
    for stage in STAGES:
        folder = recipe.folder / getattr(recipe, stage).stage
        if is_done(folder):
            require_same_recipe(folder, recipe.decisive_tables(stage))
        else:
            run_stage(stage, recipe, ranks)


def table(by_seed: Mapping[int, Mapping[str, StageSummary]]) -> str:
    """Return accuracies per stage and seed, and sampled accuracy minus SFT's, as Markdown.

    ``by_seed`` holds the stages of each seed by name; half the width of a 95 % interval follows ±.
    """
    seeds = " | ".join(f"seed {seed}: greedy / sampled" for seed in by_seed)
    lines = [
        f"| stage | {seeds} | sampled - SFT, paired | tokens |",
        "|---" * (len(by_seed) + 3) + "|",
    ]
    for name, title in STAGES.items():
        stages = [stages[name] for stages in by_seed.values() if name in stages]
        if len(stages) == len(by_seed):
            differences = DASH if name == "sft" else ", ".join(map(_difference, stages))
            cells = [title, *map(_accuracy, stages), differences, ", ".join(map(_tokens, stages))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(stage: StageSummary) -> str:
    if (evaluation := stage["evaluation"]) is None:
        return DASH
    greedy, sampled = (percent(evaluation[mode]["accuracy"]) for mode in MODES)
    low, high = evaluation["sampled"]["ci95"] or (0.0, 0.0)
    return f"{greedy}% / {sampled}% ± {percent((high - low) / 2)}%"


def _difference(stage: StageSummary) -> str:
    difference = (stage["difference"]["baseline"] or {}).get("sampled")
    if difference is None:
        return DASH
    return f"{signed(difference['mean'], 100, 1)} ± {percent(difference['half_width'])}"


def _tokens(stage: StageSummary) -> str:
    tokens = stage["evaluation"] and stage["evaluation"]["response_tokens"].get("sampled")
    return DASH if tokens is None else f"{tokens:.0f}"


def results(
    by_seed: Mapping[int, Mapping[str, StageSummary]], config: EvaluateConfig, ranks: int
) -> str:
    """Return the table and how it was made."""
    evaluation = next(iter(by_seed.values()))["grpo"]["evaluation"]
    questions = evaluation["num_questions"] if evaluation else None
    return (
        f"{table(by_seed)}\n\n"
        f"`make results` on {time.strftime('%Y-%m-%d')}, commit {commit()}, {hardware()}, {ranks} "
        f"ranks; {questions or 0:.0f} held-out questions, {config.n} samples each at temperature "
        f"{config.temperature:g}; ± and paired differences (in points) are 95 % intervals over "
        "questions."
    )


def write_results(text: str, path: Path = RESULTS) -> None:
    """Put ``text`` between the markers of docs/results.md. Ends the process if they are missing."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no {BEGIN} ... {END}; the table is:\n{text}")
    write_whole(path, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())
