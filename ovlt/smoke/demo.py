"""``ovlt demo``: the main job end to end on the smoke recipe (``make demo``).

World, base model, SFT, GRPO, held-out figures, report, for one seed. ``--results`` (``make
results``) does three seeds and writes the table of docs/results.md. The controls of an honest
comparison (SFT alone, rejection sampling alone, other filters) are those of ``ovlt cycle``.

Everything is resumable: what is done is not done again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.config.command_line import command_line
from ovlt.config.load import REPOSITORY, recipe_from
from ovlt.run.provenance import commit, hardware, write_about
from ovlt.smoke import make as smoke
from ovlt.system import env, launch

SEEDS = (0, 1, 2)
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main(argv: Sequence[str]) -> None:
    """Run what is not done of one seed, or of three with ``--results``; print the figures."""
    results = "--results" in argv
    recipe = command_line(
        "demo",
        "World, base, SFT, GRPO, figures, report. --results: three seeds.",
        ("demo", "synthetic", "base", "sft", "grpo"),
        [word for word in argv if word != "--results"],
    )
    env.apply("cpu" if recipe.run.device == "cpu" else env.machine(), shared=True)
    ranks = recipe.demo.ranks or launch.default_ranks()
    os.environ["OMP_NUM_THREADS"] = str(launch.threads_of(ranks))
    started = time.time()
    seeds = SEEDS if results else (recipe.run.seed,)
    report = Path()
    for seed in seeds:
        one = with_values(recipe, run={"seed": seed, "resume": "auto"})
        main_job(one, ranks)
        report = write_report(one)
    print(table([figures(with_values(recipe, run={"seed": s})) for s in seeds], seeds))
    print(f"\n{report}\n{(time.time() - started) / 60:.1f} minutes with {ranks} ranks")
    if results:
        write_results(recipe, ranks)


def with_values(recipe: Recipe, **tables: dict[str, Any]) -> Recipe:
    """The recipe with some keys of some tables replaced."""
    tree = recipe.resolved()
    for table, values in tables.items():
        tree[table] |= values
    return recipe_from(tree)


def main_job(recipe: Recipe, ranks: int) -> None:
    """Base, SFT and GRPO of one seed, as far as they are not done."""
    try:
        smoke.make_missing(recipe, "sft", ranks)
    except ValueError as error:
        raise SystemExit(f"ovlt demo: {error}") from None
    recipe.folder.mkdir(parents=True, exist_ok=True)
    link = recipe.folder / Path(recipe.base.folder).name
    if not link.exists():
        link.symlink_to(os.path.relpath(recipe.base.folder, recipe.folder))
    write_about(recipe.folder, recipe.run.seed, "ovlt.demo")
    run_if_needed("sft", recipe, ranks)
    run_if_needed("grpo", recipe, ranks)


def run_if_needed(table: str, recipe: Recipe, ranks: int) -> None:
    if not smoke.is_done(recipe.folder / getattr(recipe, table).stage):
        smoke.run_stage(table, recipe, ranks)


def write_report(recipe: Recipe) -> Path:
    from ovlt.report.command import write_report as write

    return write(recipe.folder)


# --- figures -----------------------------------------------------------------------------------
STAGES = ("sft", "grpo")
TITLES = {
    "sft": "SFT on teacher traces",
    "grpo": "**GRPO** from SFT",
}


def figures(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Held-out figures of every finished stage of one seed."""
    found = {}
    for stage in STAGES:
        path = recipe.folder / stage / "evaluation.json"
        if path.is_file():
            found[stage] = json.loads(path.read_text())
    return found


def table(seeds: list[dict[str, dict[str, Any]]], names: tuple[int, ...]) -> str:
    """Markdown: accuracy per stage and seed, and sampled accuracy minus SFT's per question."""
    from ovlt.evaluate.stats import paired_difference

    head = " | ".join(f"seed {n}: greedy / sampled" for n in names)
    lines = [
        f"| stage | {head} | sampled - SFT, paired | tokens |",
        "|---" * (len(names) + 3) + "|",
    ]
    for stage in STAGES:
        if not all(stage in s for s in seeds):
            continue
        cells, gaps, lengths = [], [], []
        for s in seeds:
            e = s[stage]
            low, high = e["sampled"]["ci95"]
            cells.append(
                f"{e['greedy']['accuracy']:.1%} / {e['sampled']['accuracy']:.1%} "
                f"± {(high - low) / 2:.1%}"
            )
            lengths.append(f"{e['response_tokens']['sampled']:.0f}")
            if stage != "sft" and "sft" in s:
                gap, half = paired_difference(
                    e["questions"]["sampled"], s["sft"]["questions"]["sampled"]
                )
                gaps.append(f"{100 * gap:+.1f} ± {100 * half:.1f}")
        lines.append(
            f"| {TITLES[stage]} | {' | '.join(cells)} | {', '.join(gaps) or '-'} | "
            f"{', '.join(lengths)} |"
        )
    return "\n".join(lines)


def write_results(recipe: Recipe, ranks: int) -> None:
    """Put the table, its command, hardware and date between the markers of docs/results.md."""
    seeds = [figures(with_values(recipe, run={"seed": s})) for s in SEEDS]
    questions = seeds[0]["grpo"]["num_questions"]
    n = seeds[0]["grpo"]["sampled"]["n"]
    text = (
        f"{table(seeds, SEEDS)}\n\n"
        f"`make results` on {time.strftime('%Y-%m-%d')}, commit {commit()}, {hardware()}, {ranks} "
        f"ranks; {questions} held-out questions, {n} samples each at temperature "
        f"{recipe.evaluate.temperature:g}; ± and paired differences (in points) are 95 % intervals "
        "over questions."
    )
    path = REPOSITORY / "docs" / "results.md"
    before, _, rest = (path.read_text() if path.is_file() else "").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{path} has no {BEGIN} ... {END}; the table is:\n{text}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
