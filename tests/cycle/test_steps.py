"""Which stages a cycle has, with which recipes: what the papers say of them, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from ovlt.config.load import recipe_from
from ovlt.cycle.command import needs, plan_of, up_to
from ovlt.cycle.stages import steps

TREE: dict[str, Any] = {
    "run": {"folder": "runs/x{seed}", "seed": 3},
    "model": {"path": "models/base", "freeze_vision": True},
    "data": {"validation": "v.parquet", "held_out": "h.parquet"},
    "distill": {"teacher": "models/teacher", "filter": "none", "data": "seeds.parquet"},
    "sft": {"optim": {"lr": 5e-6, "weight_decay": 0.5}},
    "grpo": {"data": "default.parquet", "eval_every": 5},
    "cycle": {
        "held_out": "levels.parquet",
        "iterations": [
            {
                "distill": {"filter": "reflections"},
                "sft": {"optim": {"lr": 1e-5}},
                "grpo": [
                    {"name": "medium", "data": "medium.parquet", "steps": 25},
                    {
                        "name": "hard",
                        "data": "hard.parquet",
                        "keep": "best",
                        "model": {"freeze_vision": False},
                    },
                ],
            },
            {},
        ],
    },
}


def tree(**cycle: Any) -> dict[str, Any]:
    return TREE | {"cycle": TREE["cycle"] | cycle}


def test_the_stages_and_what_each_starts_from() -> None:
    found = {step.name: step for step in steps(recipe_from(TREE))}
    assert list(found) == [
        "base_answers", "distill1", "sft1", "grpo1-medium", "grpo1-hard",
        "distill2", "sft2", "grpo2",
    ]  # fmt: skip
    home = "runs/x3"

    def path(name: str, table: str, key: str) -> str:
        recipe = found[name].recipe
        return recipe.expand(getattr(getattr(recipe, table), key))

    assert path("base_answers", "evaluate", "model") == "models/base"
    assert path("distill1", "distill", "teacher") == "models/teacher"
    assert path("sft1", "sft", "data") == f"{home}/distill1/rows.parquet"
    assert path("grpo1-medium", "grpo", "start") == f"{home}/sft1/model"
    assert path("grpo1-hard", "grpo", "start") == f"{home}/grpo1-medium/model"
    # the model of the iteration before answers itself, and SFT starts from the base again
    assert path("distill2", "distill", "teacher") == ""
    assert path("distill2", "distill", "captioner") == f"{home}/grpo1-hard/model"
    for name in ("sft1", "sft2"):
        assert path(name, "sft", "start") == "models/base"
    assert path("sft2", "sft", "data") == f"{home}/distill2/rows.parquet"
    assert path("grpo2", "grpo", "start") == f"{home}/sft2/model"
    for name, step in found.items():
        assert getattr(step.recipe, step.table).stage == name
        assert step.recipe.data.held_out == "levels.parquet"
        assert step.recipe.data.validation == "v.parquet"
        assert step.recipe.run.resume == "auto"


def test_the_cycle_has_its_own_number_of_validation_questions() -> None:
    for asked, used in ((0, 7), (31, 31)):
        stages = steps(
            recipe_from(
                tree(validation_questions=asked)
                | {"data": TREE["data"] | {"validation_questions": 7}}
            )
        )
        assert {stage.recipe.data.validation_questions for stage in stages} == {used}


def test_an_iteration_says_only_what_differs() -> None:
    found = {step.name: step.recipe for step in steps(recipe_from(TREE))}
    assert (found["distill1"].distill.filter, found["distill2"].distill.filter) == (
        "reflections", "none",
    )  # fmt: skip
    assert found["sft1"].sft.optim.lr == 1e-5
    assert found["sft1"].sft.optim.weight_decay == 0.5  # a table is laid over, not replaced
    assert found["sft2"].sft.optim.lr == 5e-6
    medium, hard = found["grpo1-medium"], found["grpo1-hard"]
    assert (medium.grpo.data, medium.grpo.steps) == ("medium.parquet", 25)
    assert (hard.grpo.data, hard.grpo.keep) == ("hard.parquet", "best")
    assert medium.model.freeze_vision  # the curriculum: tower frozen, then trained
    assert not hard.model.freeze_vision
    assert found["grpo2"].grpo.data == "default.parquet"


def test_continue_starts_sft_from_the_iteration_before() -> None:
    found = {step.name: step.recipe for step in steps(recipe_from(tree(restart="continue")))}
    assert found["sft1"].sft.start == "models/base"
    assert found["sft2"].expand(found["sft2"].sft.start) == "runs/x3/grpo1-hard/model"


def test_the_plan_names_what_is_missing_and_who_makes_the_rest() -> None:
    recipe = recipe_from(TREE)
    text = plan_of(recipe, up_to(steps(recipe), "sft2"))
    assert "8 stages" not in text
    assert "grpo2" not in text
    missing = text.splitlines()[-1]
    assert missing.startswith("missing: ")
    for path in ("models/base", "models/teacher", "seeds.parquet", "medium.parquet", "v.parquet"):
        assert path in missing
    assert "from distill2" in text
    assert "rows.parquet" not in missing


def test_a_stage_needs_validation_only_where_it_validates() -> None:
    found = {step.name: step for step in steps(recipe_from(TREE))}
    assert "validation" in dict(needs(found["grpo2"]))
    assert "validation" not in dict(needs(found["sft1"]))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (tree(iterations=[]), ["[[cycle.iterations]]"]),
        (TREE | {"distill": {}}, ["distill.teacher"]),
        (tree(iterations=[{"sft": {"stpes": 3}}]), ["sft1", "sft.stpes", "'steps'"]),
        (tree(iterations=[{"grpo": [{"steps": -1}]}]), ["grpo1", "grpo.steps"]),
        (tree(iterations=[{"grpo": []}]), ["iteration 1", "no part"]),
        (tree(iterations=[{"grpo": [{}, {}]}]), ["iteration 1", "differ"]),
        (tree(iterations=[{"grpo": [{"keep": "best", "eval_every": 0}]}]), ["eval_every"]),
    ],
)
def test_a_mistake_is_found_before_anything_runs(broken: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        steps(recipe_from(broken))
    for word in words:
        assert word in str(caught.value)


def test_until_takes_the_name_of_a_stage() -> None:
    todo = steps(recipe_from(TREE))
    assert [step.name for step in up_to(todo, "sft1")] == ["base_answers", "distill1", "sft1"]
    with pytest.raises(ValueError, match=r"--until=sft3 .*grpo1-hard"):
        up_to(todo, "sft3")
