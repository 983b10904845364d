"""Controls of a cycle: its data and compute, used otherwise. And the record of what is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovlt.config import Recipe
from ovlt.config.load import recipe_from
from ovlt.cycle.controls import chosen, controls
from ovlt.cycle.stages import Step, steps
from ovlt.cycle.state import State

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
def done(tmp_path: Path) -> State:
    """A cycle of made-up stages, each with what was logged of it."""
    state = State(tmp_path, 5)
    todo = steps(recipe(tmp_path))
    state.announce(todo)
    for step in todo:
        finish(state, step, {"distill1": 50.0, "distill2": 30.0}.get(step.name, 1.0))
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
    return state


def finish(state: State, step: Step, seconds: float) -> None:
    with state.running(step):
        step.folder.mkdir(parents=True)
        if step.output is not None:
            step.output.mkdir()
    state.entries[step.name]["seconds"] = seconds


def made(state: State, folder: Path, *words: str) -> dict[str, Step]:
    found = {}
    for step in controls(recipe(folder), state):
        if words and not chosen(step, words):
            continue
        found[step.name] = step
        state.announce([step])
        if not state.is_done(step):
            finish(state, step, 20.0)
    return found


def test_each_control_changes_what_it_is_named_for_and_nothing_else(
    done: State, tmp_path: Path
) -> None:
    found = made(done, tmp_path)
    assert {name: step.comparison for name, step in found.items()} == {
        "sft-only": "single", "distill-rejection": "single", "sft-rejection": "single",
        "grpo1-only": "single", "grpo2-only": "single",
        "sft2-continue": "restart", "grpo2-continue": "restart",
        "distill1-none": "filter", "sft1-none": "filter",
        "distill1-max_words": "filter", "sft1-max_words": "filter",
    }  # fmt: skip
    main = {step.name: step for step in steps(recipe(tmp_path))}

    def differs(name: str, other: str) -> set[str]:
        table = main[other].table
        ours, theirs = (
            getattr(step.recipe, table).model_dump() for step in (found[name], main[other])
        )
        assert found[name].recipe.model == main[other].recipe.model
        return {key for key in ours if ours[key] != theirs[key]} - {"stage", "title"}

    assert differs("sft-only", "sft1") == {"steps"}
    assert differs("sft-rejection", "sft1") == {"steps", "data"}
    assert differs("grpo1-only", "grpo1") == differs("grpo2-only", "grpo2") == {"start"}
    assert differs("distill1-none", "distill1") == {"answers_of", "filter"}
    assert differs("sft1-none", "sft1") == {"data"}
    assert differs("sft2-continue", "sft2") == {"start"}
    assert differs("grpo2-continue", "grpo2") == {"start"}
    assert found["sft2-continue"].recipe.sft.start == "{folder}/grpo1/model"
    assert found["grpo2-continue"].recipe.grpo.start == "{folder}/sft2-continue/model"
    assert found["grpo1-only"].recipe.grpo.start == "base"
    assert found["grpo2-only"].recipe.grpo.start == "{folder}/grpo1-only/model"
    rejection = found["distill-rejection"].recipe.distill
    assert (rejection.teacher, rejection.captioner) == ("", "{folder}/sft1/model")
    assert rejection.seed == 5


def test_sft_alone_and_rejection_alone_take_the_seconds_of_the_cycle(
    done: State, tmp_path: Path
) -> None:
    found = made(done, tmp_path)
    spent = sum(SECONDS[name] * STEPS[name] for name in SECONDS) + 30.0  # distill1 is theirs too
    assert found["sft-only"].recipe.sft.steps == round(spent / SECONDS["sft1"])
    left = spent - SECONDS["sft1"] * STEPS["sft1"] - 20.0  # SFT-1 and its answers came first
    assert found["sft-rejection"].recipe.sft.steps == round(left / SECONDS["sft1"])
    # asked for again, they are as they were: what is done is known as done
    again = made(State(tmp_path, 5), tmp_path)
    assert again == found


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
    done: State, tmp_path: Path, words: list[str], names: list[str]
) -> None:
    found = made(done, tmp_path, *words)
    assert list(found) == names
    everything = made(State(tmp_path, 5), tmp_path)  # then the others: what is done stays
    assert {name: everything[name] for name in names} == found


def test_a_stage_whose_result_is_gone_is_made_again(done: State, tmp_path: Path) -> None:
    (sft1,) = [step for step in steps(recipe(tmp_path)) if step.name == "sft1"]
    assert done.is_done(sft1)
    assert sft1.output is not None
    sft1.output.rmdir()
    assert not done.is_done(sft1)


def test_other_settings_are_refused_for_what_is_done_and_taken_for_what_waits(
    done: State, tmp_path: Path
) -> None:
    done.entries["grpo2"] |= {"status": "waiting"}
    done.announce(
        steps(recipe(tmp_path, grpo={"data": "medium.parquet", "eval_every": 0, "save_every": 3}))
    )
    tree = recipe(tmp_path).resolved()
    tree["cycle"]["iterations"][1]["grpo"][0]["steps"] = 3
    done.announce(steps(recipe_from(tree)))
    tree["cycle"]["iterations"][0]["sft"]["batch_samples"] = 8
    with pytest.raises(ValueError, match=r"sft1 .*sft.batch_samples was 7, is 8"):
        done.announce(steps(recipe_from(tree)))
    graded = {"data": "medium.parquet", "eval_every": 0, "reward": {"function": "released"}}
    with pytest.raises(ValueError, match=r"base_answers .*reward.function was \"answer\", is"):
        done.announce(steps(recipe(tmp_path, grpo=graded)))
