"""``--smoke``: a recipe's own method at the size of recipes/smoke.toml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovlt.config import Recipe
from ovlt.config.command_line import SMOKE_HELP, command_line
from ovlt.config.load import SMOKE_RECIPE, leaves, load_recipe
from ovlt.config.smoke_size import SIZED, WORLD

RECIPES = sorted(SMOKE_RECIPE.parent.glob("*.toml"))
BIG = """
[run]
folder = "runs/big/seed{seed}"
seed = 3
[model]
path = "models/Qwen2.5-VL-7B-Instruct"
compute_dtype = "bfloat16"
freeze_vision = true
max_pixels = 262144
chat_template_kwargs = { enable_thinking = false }
[data]
validation = "data/big/validation.parquet"
suffix = " Think first."
max_bad_share = 0.25
[sft]
data = "data/big/sft.parquet"
epochs = 2.0
batch_samples = 512
[sft.optim]
lr = 5e-6
[grpo]
data = "data/big/medium.parquet"
steps = 25
prompts_per_step = 512
updates_per_rollout = 2
token_budget = 16384
keep = "best"
reference = "models/other"
[grpo.loss]
kl_coef = 3e-3
ratio = "sequence"
[grpo.rollout]
n = 6
temperature = 0.9
max_response_tokens = 4096
[reward]
function = "released"
overlong_tokens = 512
[evaluate]
n = 0
model = "models/judged"
[distill]
data = "data/big/seeds.parquet"
teacher = "models/QwQ-32B"
teacher_chat_template_kwargs = { enable_thinking = true }
captioner_chat_template_kwargs = {}
k = 7
keep = "second_longest"
filter = "reflections"
[distill.engine]
tensor_parallel = 8
[cycle]
restart = "continue"
validation = "data/big/hard.parquet"
ranks = 8
[[cycle.iterations]]
distill = { data = "data/big/first.parquet", keep = "shortest", questions = 9 }
[[cycle.iterations]]
sft = { epochs = 3.0, model = { freeze_vision = false, path = "models/x" }, optim = { lr = 1e-7 } }
[cycle.iterations.distill]
teacher = ""
filter = "none"
engine.tensor_parallel = 8
captioner_chat_template_kwargs.enable_thinking = true
[[cycle.iterations.grpo]]
name = "medium"
steps = 25
[[cycle.iterations.grpo]]
name = "hard"
data = "data/big/hard.parquet"
start = "{folder}/grpo2-medium/model"
loss = { kl_coef = 0.0 }
model = { freeze_vision = false }
"""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.toml"
    path.write_text(BIG)
    return path


def smoke_recipe() -> Recipe:
    return load_recipe(SMOKE_RECIPE)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_the_method_stays_the_recipes(big: Path) -> None:
    got, asked = load_recipe(big, smoke=True), load_recipe(big)
    assert got.grpo.loss == asked.grpo.loss
    assert got.grpo.updates_per_rollout == 2
    assert got.grpo.keep == "best"
    assert (got.grpo.rollout.n, got.grpo.rollout.temperature) == (6, 0.9)
    assert got.reward.function == "released"
    assert (got.distill.k, got.distill.keep, got.distill.filter) == (
        7,
        "second_longest",
        "reflections",
    )
    assert got.model.freeze_vision
    assert got.evaluate.n == 0
    assert got.run.seed == 3
    assert got.data.max_bad_share == 0.25


def test_places_sizes_and_rates_are_those_of_the_smoke_recipe(big: Path) -> None:
    got, smoke = load_recipe(big, smoke=True), smoke_recipe()
    for name in ("synthetic", "base", "teacher"):
        assert getattr(got, name) == getattr(smoke, name)
    assert got.model.path == smoke.model.path
    assert (got.model.min_pixels, got.model.max_pixels) == (3136, 100352)
    assert got.data.validation == smoke.data.validation
    assert got.data.suffix == smoke.data.suffix
    for table in ("sft", "grpo"):
        ours, theirs = getattr(got, table), getattr(smoke, table)
        assert (ours.steps, ours.token_budget) == (theirs.steps, theirs.token_budget)
        assert ours.optim.lr == theirs.optim.lr
    assert got.sft.batch_samples == smoke.sft.batch_samples
    assert got.grpo.prompts_per_step == smoke.grpo.prompts_per_step
    assert got.grpo.rollout.max_response_tokens == smoke.grpo.rollout.max_response_tokens
    assert got.distill.form == smoke.distill.form
    assert got.distill.max_words == smoke.distill.max_words < 500


def test_what_means_nothing_on_this_machine_falls_back_to_its_default(big: Path) -> None:
    got = load_recipe(big, smoke=True)
    assert got.model.compute_dtype == "auto"
    assert got.grpo.reference == ""
    assert got.evaluate.model == ""
    assert got.distill.engine.tensor_parallel == 1
    assert got.model.chat_template_kwargs == got.distill.teacher_chat_template_kwargs == {}
    assert got.distill.captioner_chat_template_kwargs is None
    assert got.reward.overlong_tokens == 0
    assert got.cycle.ranks == 0
    assert got.cycle.validation in ("", smoke_recipe().cycle.validation)


def test_the_iterations_keep_their_parts_but_not_their_places_and_sizes(big: Path) -> None:
    cycle = load_recipe(big, smoke=True).cycle
    assert cycle.restart == "continue"
    first, second = cycle.iterations
    assert first.distill == {"keep": "shortest"}
    assert second.distill == {"teacher": "", "filter": "none"}  # "": the model itself, so it stays
    assert second.sft == {"model": {"freeze_vision": False}}
    assert second.grpo == (
        {"name": "medium"},
        {
            "name": "hard",
            "start": "{folder}/grpo2-medium/model",
            "loss": {"kl_coef": 0.0},
            "model": {"freeze_vision": False},
        },
    )


def test_the_run_lies_beside_the_real_one(big: Path) -> None:
    assert load_recipe(big, smoke=True).folder == Path("runs/big-smoke/seed3")
    other = load_recipe(big, ["--run.folder=elsewhere"], smoke=True)
    assert other.folder == Path("elsewhere")


def test_what_the_command_line_says_comes_last(big: Path) -> None:
    got = load_recipe(big, ["--sft.steps=2", "--grpo.rollout.n=3"], smoke=True)
    assert (got.sft.steps, got.grpo.rollout.n) == (2, 3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_small_self(path: Path) -> None:
    got, asked = load_recipe(path, smoke=True), load_recipe(path)
    assert got.grpo.loss == asked.grpo.loss
    assert len(got.cycle.iterations) == len(asked.cycle.iterations)
    for ours, theirs in zip(got.cycle.iterations, asked.cycle.iterations, strict=True):
        assert [p.get("name") for p in ours.grpo] == [p.get("name") for p in theirs.grpo]
    tables = got.resolved()
    used = [tables[name] for name in ("model", "data", "sft", "grpo", "evaluate", "distill")]
    outside = [t for t in strings([*used, tables["cycle"]]) if t.startswith(("models/", "data/"))]
    assert outside == []  # nothing that a user would have to bring


def test_a_mistake_in_a_key_that_gives_way_is_still_a_mistake(big: Path) -> None:
    for right, wrong, said in (
        ("batch_samples = 512", "batch_sample = 512", r"unknown key 'sft\.batch_sample'"),
        ("batch_samples = 512", "batch_samples = 0", r"sft\.batch_samples: .* greater than 0"),
    ):
        big.write_text(BIG.replace(right, wrong))
        with pytest.raises(ValueError, match=said):
            load_recipe(big, smoke=True)


def test_commands_take_the_flag_anywhere_and_explain_it(
    big: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (
        [str(big), "--smoke", "--sft.steps", "4"],
        ["--sft.steps", "4", "--smoke", str(big)],
    ):
        assert command_line("sft", "", ("sft",), argv) == load_recipe(
            big, ["--sft.steps=4"], smoke=True
        )
    with pytest.raises(SystemExit) as ended:
        command_line("sft", "", ("sft",), ["--help"])
    assert ended.value.code == 0
    assert SMOKE_HELP in capsys.readouterr().out


def test_the_record_of_a_small_run_is_a_recipe_of_its_own(big: Path, tmp_path: Path) -> None:
    """Stages are started with the resolved recipe, without the flag."""
    got = load_recipe(big, smoke=True)
    record = tmp_path / "recipe.json"
    record.write_text(json.dumps(got.resolved()))
    assert load_recipe(record) == got


def test_every_key_that_gives_way_exists() -> None:
    known = {key for name, _ in leaves(Recipe) for key in name.split(".")}
    assert set(SIZED) <= known
    assert set(WORLD) <= set(Recipe.model_fields)
