"""The table that the demo prints and `ovlt demo --results` writes into docs/results.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.cycle_folders import make_cycle

from ovlt.config import EvaluateConfig
from ovlt.config.load import load_recipe
from ovlt.report.command import summarize
from ovlt.report.summary import StageSummary
from ovlt.report.text import DASH
from ovlt.run.version import version_record
from ovlt.smoke.demo import BEGIN, END, results, run_demo, table, write_results
from ovlt.system.files import write_json


@pytest.fixture
def by_seed(tmp_path: Path) -> dict[int, dict[str, StageSummary]]:
    """SFT and GRPO of two seeds, made up."""
    runs = {}
    for seed in (3, 5):
        run = make_cycle(tmp_path / f"seed{seed}", seed)
        for name in ("sft", "grpo"):
            (run / f"{name}1").rename(run / name)
        runs[seed] = {stage["name"]: stage for stage in summarize(run)["stages"]}
    return runs


def test_the_table_has_a_column_per_seed_and_paired_differences_to_sft(
    by_seed: dict[int, dict[str, StageSummary]],
) -> None:
    heading, rule, sft, grpo = table(by_seed).splitlines()
    assert "seed 3: greedy / sampled | seed 5: greedy / sampled" in heading
    assert {line.count("|") for line in (heading, rule, sft, grpo)} == {6}
    evaluation, difference = by_seed[5]["grpo"]["evaluation"], by_seed[5]["grpo"]["difference"]
    assert evaluation is not None
    assert evaluation["greedy"]["accuracy"] is not None
    assert f" {100 * evaluation['greedy']['accuracy']:.1f}% / " in grpo.split("|")[3]
    assert difference["baseline"] is not None
    assert difference["baseline"]["to"] == "sft"
    assert "sampled" in difference["baseline"]
    sampled = difference["baseline"]["sampled"]
    text = f", +{100 * sampled['mean']:.1f} ± {100 * sampled['half_width']:.1f} "
    assert text in grpo.split("|")[4]
    assert sft.split("|")[4].strip() == DASH


def test_a_stage_that_some_seed_lacks_has_no_row(
    by_seed: dict[int, dict[str, StageSummary]],
) -> None:
    del by_seed[5]["grpo"]
    assert len(table(by_seed).splitlines()) == 3


def test_the_results_stand_between_the_markers_of_their_page(
    by_seed: dict[int, dict[str, StageSummary]], tmp_path: Path
) -> None:
    text = results(by_seed, EvaluateConfig(n=4), ranks=2)
    assert "2 ranks; 107 held-out questions, 4 samples each at temperature 1;" in text
    page = tmp_path / "results.md"
    with pytest.raises(SystemExit, match=r"results.md has no <!-- results:begin -->"):
        write_results(text, page)
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_results(text, page)
    assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"


def test_a_stage_that_is_done_is_not_passed_over_for_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(overrides=[f"--run.folder={tmp_path}"])
    monkeypatch.setattr("ovlt.smoke.demo.make_missing", lambda *_: None)
    started: list[str] = []
    monkeypatch.setattr("ovlt.smoke.demo.run_stage", lambda stage, *_: started.append(stage))
    folder = tmp_path / recipe.sft.stage
    folder.mkdir()
    write_json(folder / "stage.json", {"status": "done"})
    write_json(folder / "recipe.json", recipe.decisive_tables("sft") | version_record())
    run_demo(recipe, 1)
    assert started == ["grpo"]
    other = load_recipe(overrides=[f"--run.folder={tmp_path}", "--sft.steps=9"])
    with pytest.raises(ValueError, match=r"is done, with another recipe: sft\.steps was"):
        run_demo(other, 1)
