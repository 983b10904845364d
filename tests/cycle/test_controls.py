"""The controls of a cycle, which use its data and compute in another way; and its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovlt import __version__
from ovlt.config import Recipe
from ovlt.config.load import recipe_from
from ovlt.cycle.controls import controls, is_chosen
from ovlt.cycle.record import CycleRecord
from ovlt.cycle.stages import CycleStage, cycle_stages

SECONDS = {"sft1": 2.0, "grpo1": 5.0, "sft2": 3.0, "grpo2": 7.0}  # of each of its steps
STEPS = {"sft1": 11, "grpo1": 3, "sft2": 7, "grpo2": 5}


def recipe(folder: Path, **tables: Any) -> Recipe:
    tree: dict[str, Any] = {
        "run": {"folder": str(folder), "seed": 5},
        "model": {"path": "base"},
        "distill": {"teacher": "teacher", "data": "seeds.parquet"},
        "grpo": {"data": "medium.parquet", "eval_every": 0},
        "cycle": {
            "iterations": [
                {"distill": {"filter": "reflections"}, "sft": {"batch_samples": 7}},
                {"sft": {"batch_samples": 9}, "grpo": [{"data": "hard.parquet"}]},
            ]
        },
    }
    return recipe_from(tree | tables)


@pytest.fixture
def done(tmp_path: Path) -> CycleRecord:
    """A cycle of made-up stages, each with its logged steps."""
    record = CycleRecord(tmp_path, 5)
    stages = cycle_stages(recipe(tmp_path))
    record.add(stages)
    for stage in stages:
        finish(record, stage, {"distill1": 50.0, "distill2": 30.0}.get(stage.name, 1.0))
    for name, seconds in SECONDS.items():
        lines = [
            {
                "step": n + 1, "metrics": {},
                "seconds": {"update": seconds - 0.5, "data": 0.5, "validation": 9, "checkpoint": 9},
            }
            for n in range(STEPS[name])
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    return record


def finish(record: CycleRecord, stage: CycleStage, seconds: float) -> None:
    with record.running(stage):
        stage.folder.mkdir(parents=True)
        if stage.output is not None:
            stage.output.mkdir()
    record.entries[stage.name]["seconds"] = seconds


def run_controls(record: CycleRecord, folder: Path, *words: str) -> dict[str, CycleStage]:
    """Run the controls that ``words`` choose, all without words; return them by name."""
    by_name = {}
    for stage in controls(cycle_stages(recipe(folder)), record, restarts=True):
        if words and not is_chosen(stage, words):
            continue
        by_name[stage.name] = stage
        record.add([stage])
        if not record.is_done(stage):
            finish(record, stage, 20.0)
    return by_name


def test_each_control_changes_what_it_is_named_for_and_nothing_else(
    done: CycleRecord, tmp_path: Path
) -> None:
    by_name = run_controls(done, tmp_path)
    assert {name: stage.comparison for name, stage in by_name.items()} == {
        "sft-only": "single", "distill-rejection": "single", "sft-rejection": "single",
        "grpo1-only": "single", "grpo2-only": "single",
        "sft2-continue": "restart", "grpo2-continue": "restart",
        "distill1-none": "filter", "sft1-none": "filter",
        "distill1-max_words": "filter", "sft1-max_words": "filter",
    }  # fmt: skip
    main = {stage.name: stage for stage in cycle_stages(recipe(tmp_path))}

    def differs(name: str, other: str) -> set[str]:
        table = main[other].table
        ours, theirs = (
            getattr(stage.recipe, table).model_dump() for stage in (by_name[name], main[other])
        )
        assert by_name[name].recipe.model == main[other].recipe.model
        return {key for key in ours if ours[key] != theirs[key]} - {"stage", "title"}

    assert differs("sft-only", "sft1") == {"steps"}
    assert differs("sft-rejection", "sft1") == {"steps", "data"}
    assert differs("grpo1-only", "grpo1") == differs("grpo2-only", "grpo2") == {"start"}
    assert differs("distill1-none", "distill1") == {"answers_of", "filter"}
    assert differs("sft1-none", "sft1") == {"data"}
    assert differs("sft2-continue", "sft2") == {"start"}
    assert differs("grpo2-continue", "grpo2") == {"start"}
    assert by_name["sft2-continue"].recipe.sft.start == "{folder}/grpo1/model"
    assert by_name["grpo2-continue"].recipe.grpo.start == "{folder}/sft2-continue/model"
    assert by_name["grpo1-only"].recipe.grpo.start == "base"
    assert by_name["grpo2-only"].recipe.grpo.start == "{folder}/grpo1-only/model"
    rejection = by_name["distill-rejection"].recipe.distill
    assert (rejection.teacher, rejection.captioner) == ("", "{folder}/sft1/model")
    assert rejection.seed == 5


def test_sft_alone_and_rejection_alone_take_the_seconds_of_the_cycle(
    done: CycleRecord, tmp_path: Path
) -> None:
    by_name = run_controls(done, tmp_path)
    spent = sum(SECONDS[name] * STEPS[name] for name in SECONDS) + 30.0  # distill1 is theirs too
    assert by_name["sft-only"].recipe.sft.steps == round(spent / SECONDS["sft1"])
    left = spent - SECONDS["sft1"] * STEPS["sft1"] - 20.0  # SFT-1 and its answers came first
    assert by_name["sft-rejection"].recipe.sft.steps == round(left / SECONDS["sft1"])
    # asked for again, they are as they were: what is done is known as done
    again = run_controls(CycleRecord(tmp_path, 5), tmp_path)
    assert again == by_name


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["sft-only"], ["sft-only"]),
        (["rejection"], ["distill-rejection", "sft-rejection"]),
        (["max_words"], ["distill1-max_words", "sft1-max_words"]),
        (["restart", "rl-only"], ["grpo1-only", "grpo2-only", "sft2-continue", "grpo2-continue"]),
    ],
)
def test_some_of_the_controls_can_be_asked_for(
    done: CycleRecord, tmp_path: Path, words: list[str], names: list[str]
) -> None:
    by_name = run_controls(done, tmp_path, *words)
    assert list(by_name) == names
    everything = run_controls(
        CycleRecord(tmp_path, 5), tmp_path
    )  # then the others: what is done stays
    assert {name: everything[name] for name in names} == by_name


def test_a_stage_whose_result_is_gone_is_made_again(done: CycleRecord, tmp_path: Path) -> None:
    (sft1,) = [stage for stage in cycle_stages(recipe(tmp_path)) if stage.name == "sft1"]
    assert done.is_done(sft1)
    assert sft1.output is not None
    sft1.output.rmdir()
    assert not done.is_done(sft1)


def test_other_settings_are_refused_for_a_stage_that_is_done_and_taken_for_one_that_waits(
    done: CycleRecord, tmp_path: Path
) -> None:
    done.entries["grpo2"]["status"] = "waiting"
    grpo = {"data": "medium.parquet", "eval_every": 0, "save_every": 3}
    done.add(cycle_stages(recipe(tmp_path, grpo=grpo)))
    tree = recipe(tmp_path).resolved()
    tree["cycle"]["iterations"][1]["grpo"][0]["steps"] = 3
    done.add(cycle_stages(recipe_from(tree)))
    tree["cycle"]["iterations"][0]["sft"]["batch_samples"] = 8
    with pytest.raises(ValueError, match=r"sft1 .*sft.batch_samples was 7, is 8"):
        done.add(cycle_stages(recipe_from(tree)))
    graded = recipe(tmp_path, reward={"function": "released"})
    with pytest.raises(ValueError, match=r"base_answers .*reward.function was \"answer\", is"):
        done.add(cycle_stages(graded))


def test_the_folder_of_another_version_is_refused_in_one_sentence(
    done: CycleRecord, tmp_path: Path
) -> None:
    record = json.loads(done.path.read_text())
    assert (record["ovlt"], record["format"]) == (__version__, 2)
    old = {"seed": 5, "stages": record["stages"]}  # as 0.1 wrote it
    newer = record | {"ovlt": "7.0", "format": 9}
    for other, version in ((old, "0.1"), (newer, "7.0")):
        done.path.write_text(json.dumps(other))
        message = rf"cycle.json was written by ovlt {version} .*finish that cycle with the version"
        with pytest.raises(ValueError, match=message):
            CycleRecord(tmp_path, 5)
