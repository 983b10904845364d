"""``python -m ovlt.demo``: the main job end to end on the smoke recipe (``make demo``).

World, base model, SFT, GRPO, held-out figures, report, for one seed. ``--results`` (``make
results``) does three seeds and the controls that an honest demonstration needs, and writes the
README's table:

- SFT alone with the compute of SFT + GRPO: is it only more training?
- SFT on rejection samples of the SFT model, no RL: is it only better data?

Everything is resumable: what is done is not done again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.config.load import REPOSITORY, command_line, recipe_from
from ovlt.run.provenance import commit, hardware, write_about
from ovlt.smoke import make as smoke
from ovlt.system import env, launch

SEEDS = (0, 1, 2)
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main() -> None:
    arguments = sys.argv[1:]
    results = "--results" in arguments
    recipe = command_line(
        "demo",
        "World, base, SFT, GRPO, figures, report. --results: three seeds and the controls.",
        "demo",
        [a for a in arguments if a != "--results"],
    )
    ranks = recipe.demo.ranks or launch.default_ranks()
    cores = env.usable_cores()
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // ranks))
    started = time.time()
    seeds = SEEDS if results else (recipe.run.seed,)
    report = Path()
    for seed in seeds:
        one = with_values(recipe, run={"seed": seed, "resume": "auto"})
        main_job(one, ranks)
        if results:
            controls(one, ranks)
        report = write_report(one)
    print(table([figures(with_values(recipe, run={"seed": s})) for s in seeds], seeds))
    print(f"\n{report}\n{(time.time() - started) / 60:.1f} minutes with {ranks} ranks")
    if results:
        write_readme(recipe, ranks)


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
        raise SystemExit(f"ovlt.demo: {error}") from None
    recipe.folder.mkdir(parents=True, exist_ok=True)
    link = recipe.folder / Path(recipe.base.folder).name
    if not link.exists():
        link.symlink_to(os.path.relpath(recipe.base.folder, recipe.folder))
    write_about(recipe.folder, recipe.run.seed, "ovlt.demo")
    run_if_needed("sft", recipe, ranks)
    run_if_needed("grpo", recipe, ranks)


def controls(recipe: Recipe, ranks: int) -> None:
    """The two comparisons, same seed, same base, same held-out questions; and the base itself."""
    from ovlt.distill import reject

    asked = {"stage": "base_answers", "model": str(smoke.base_model(recipe)), "n": 1}
    run_if_needed("evaluate", with_values(recipe, evaluate=asked), ranks)

    steps = recipe.demo.control_steps or matched_steps(recipe)
    longer = {"stage": "sft_long", "title": "Control: SFT alone, compute of SFT + GRPO"}
    run_if_needed("sft", with_values(recipe, sft=longer | {"steps": steps}), ranks)
    rows = reject.rows_path(recipe)
    if not rows.is_file():
        path = smoke.write_recipe(recipe, recipe.folder / "recipes" / "rejection.json")
        launch.torchrun("ovlt.reject", path, ranks)
    rejection = {
        "stage": "sft_rejection",
        "title": "Control: SFT on rejection samples of the SFT model",
        "data": str(rows),
    }
    run_if_needed("sft", with_values(recipe, sft=rejection), ranks)


def run_if_needed(table: str, recipe: Recipe, ranks: int) -> None:
    if not smoke.is_done(recipe.folder / getattr(recipe, table).stage):
        smoke.run_stage(table, recipe, ranks)


def matched_steps(recipe: Recipe) -> int:
    """SFT steps whose measured time equals SFT's plus GRPO's, validation and saving left out."""
    from ovlt.run.metrics import step_seconds

    sft, grpo = (step_seconds(recipe.folder / t.stage) for t in (recipe.sft, recipe.grpo))
    return len(sft) + round(sum(grpo) / (sum(sft) / len(sft)))


def write_report(recipe: Recipe) -> Path:
    from ovlt.report.command import write_report as write

    return write(recipe.folder)


# --- figures -----------------------------------------------------------------------------------
STAGES = ("base_answers", "sft", "grpo", "sft_long", "sft_rejection")
TITLES = {
    "base_answers": "base, asked the same",
    "sft": "SFT on teacher traces",
    "grpo": "**GRPO** from SFT",
    "sft_long": "control: SFT alone, same compute",
    "sft_rejection": "control: SFT on rejection samples",
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


def write_readme(recipe: Recipe, ranks: int) -> None:
    """Put the table, its command, hardware and date between the README's markers."""
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
    path = REPOSITORY / "README.md"
    before, _, rest = path.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"README.md has no {BEGIN} ... {END}; the table is:\n{text}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
