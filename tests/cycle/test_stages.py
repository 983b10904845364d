"""Which stages a cycle has, with which recipes; its options; and mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from ovlt.config.load import recipe_from
from ovlt.cycle.command import inputs_of, plan_text, read_options, up_to
from ovlt.cycle.controls import ALL
from ovlt.cycle.stages import cycle_stages

TREE: dict[str, Any] = {
    "run": {"folder": "runs/x{seed}", "seed": 3},
    "model": {"path": "models/base", "freeze_vision": True},
    "data": {"validation": "v.parquet", "held_out": "h.parquet"},
    "distill": {
        "teacher": "models/teacher", "filter": "none", "data": "seeds.parquet",
        "captioner": "models/seer", "captioner_chat_template_kwargs": {"thinks": False},
    },
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
}  # fmt: skip


def tree(**cycle: Any) -> dict[str, Any]:
    return TREE | {"cycle": TREE["cycle"] | cycle}


def test_the_stages_and_what_each_starts_from() -> None:
    stages = {stage.name: stage for stage in cycle_stages(recipe_from(TREE))}
    assert list(stages) == [
        "base_answers", "distill1", "sft1", "grpo1-medium", "grpo1-hard",
        "distill2", "sft2", "grpo2",
    ]  # fmt: skip
    home = "runs/x3"

    def path(name: str, table: str, key: str) -> str:
        recipe = stages[name].recipe
        return recipe.expand(getattr(getattr(recipe, table), key))

    assert path("base_answers", "evaluate", "model") == "models/base"
    assert path("distill1", "distill", "teacher") == "models/teacher"
    assert path("sft1", "sft", "data") == f"{home}/distill1/rows.parquet"
    assert path("grpo1-medium", "grpo", "start") == f"{home}/sft1/model"
    assert path("grpo1-hard", "grpo", "start") == f"{home}/grpo1-medium/model"
    # the model of the iteration before answers itself, and SFT starts from the base again
    assert path("distill2", "distill", "teacher") == ""
    assert path("distill2", "distill", "captioner") == f"{home}/grpo1-hard/model"
    assert stages["distill1"].recipe.distill.captioner_chat_template_kwargs == {"thinks": False}
    assert stages["distill2"].recipe.distill.captioner_chat_template_kwargs is None
    for name in ("sft1", "sft2"):
        assert path(name, "sft", "start") == "models/base"
    assert path("sft2", "sft", "data") == f"{home}/distill2/rows.parquet"
    assert path("grpo2", "grpo", "start") == f"{home}/sft2/model"
    for name, stage in stages.items():
        assert getattr(stage.recipe, stage.table).stage == name
        assert stage.recipe.data.held_out == "levels.parquet"
        assert stage.recipe.data.validation == "v.parquet"
        assert stage.recipe.run.resume == "auto"


def test_the_cycle_has_its_own_number_of_validation_questions() -> None:
    for given, used in ((0, 7), (31, 31)):
        stages = cycle_stages(
            recipe_from(
                tree(validation_questions=given)
                | {"data": TREE["data"] | {"validation_questions": 7}}
            )
        )
        assert {stage.recipe.data.validation_questions for stage in stages} == {used}


def test_an_iteration_says_only_what_differs() -> None:
    recipes = {stage.name: stage.recipe for stage in cycle_stages(recipe_from(TREE))}
    assert (recipes["distill1"].distill.filter, recipes["distill2"].distill.filter) == (
        "reflections", "none",
    )  # fmt: skip
    assert recipes["sft1"].sft.optim.lr == 1e-5
    assert recipes["sft1"].sft.optim.weight_decay == 0.5  # a table is laid over, not replaced
    assert recipes["sft2"].sft.optim.lr == 5e-6
    medium, hard = recipes["grpo1-medium"], recipes["grpo1-hard"]
    assert (medium.grpo.data, medium.grpo.steps) == ("medium.parquet", 25)
    assert (hard.grpo.data, hard.grpo.keep) == ("hard.parquet", "best")
    assert medium.model.freeze_vision  # the curriculum: tower frozen, then trained
    assert not hard.model.freeze_vision
    assert recipes["grpo2"].grpo.data == "default.parquet"


def test_an_iterations_keywords_for_a_chat_template_are_not_mixed_with_others() -> None:
    """Keywords of another model's template would be refused or, worse, read."""
    key = "captioner_chat_template_kwargs"
    iterations = [{"distill": {key: words}} for words in ({}, {"deep": True})] + [{}]
    stages = {s.name: s.recipe for s in cycle_stages(recipe_from(tree(iterations=iterations)))}
    keywords = [getattr(stages[f"distill{i}"].distill, key) for i in (1, 2, 3)]
    assert keywords == [{}, {"deep": True}, None]


def test_continue_starts_sft_from_the_iteration_before() -> None:
    recipes = {
        stage.name: stage.recipe for stage in cycle_stages(recipe_from(tree(restart="continue")))
    }
    assert recipes["sft1"].sft.start == "models/base"
    assert recipes["sft2"].expand(recipes["sft2"].sft.start) == "runs/x3/grpo1-hard/model"


def test_the_plan_names_what_is_missing_and_who_makes_the_rest() -> None:
    recipe = recipe_from(TREE)
    text = plan_text(recipe.folder, up_to(cycle_stages(recipe), "sft2"))
    assert "runs/x3: 7 stages" in text
    assert "grpo2" not in text
    missing = text.splitlines()[-1]
    assert missing.startswith("missing: ")
    for path in ("models/base", "models/teacher", "seeds.parquet", "medium.parquet", "v.parquet"):
        assert path in missing
    assert "from distill2" in text
    assert "rows.parquet" not in missing


def test_a_stage_needs_validation_questions_only_if_it_validates() -> None:
    stages = {stage.name: stage for stage in cycle_stages(recipe_from(TREE))}
    assert "validation" in dict(inputs_of(stages["grpo2"]))
    assert "validation" not in dict(inputs_of(stages["sft1"]))


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
        cycle_stages(recipe_from(broken))
    for word in words:
        assert word in str(caught.value)


def test_until_takes_the_name_of_a_stage() -> None:
    stages = cycle_stages(recipe_from(TREE))
    assert [stage.name for stage in up_to(stages, "sft1")] == ["base_answers", "distill1", "sft1"]
    with pytest.raises(ValueError, match=r"--until=sft3 .*grpo1-hard"):
        up_to(stages, "sft3")


def test_options_are_taken_out_and_the_rest_is_left_to_the_recipe() -> None:
    words = ["--dry-run", "--controls", "a.toml", "--seeds", "0,1", "--sft.steps", "3", "--smoke"]
    options, rest = read_options(words)
    assert (options.dry_run, options.until, options.seeds, options.controls) == (
        *(True, "", (0, 1), ALL),
    )
    assert rest == ["a.toml", "--sft.steps", "3", "--smoke"]
    options, rest = read_options(["--until=sft1", "--controls=restart,filter", "--help"])
    assert (options.dry_run, options.until, options.seeds) == (False, "sft1", ())
    assert options.controls == ("restart", "filter")
    assert rest == ["--help"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--seeds=a", "ovlt cycle: --seeds=a should be like --seeds=0,1,2"),
        ("--controls=sft", "ovlt cycle: --controls=sft: choose among single,"),
    ],
)
def test_a_mistake_in_an_option_is_one_sentence(word: str, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        read_options([word])
    assert str(caught.value).startswith(message)
