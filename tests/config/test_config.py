"""Recipes: what is right is read, what is wrong is answered with the sentence that mends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ovlt.config import GrpoConfig, LossConfig, Recipe, RolloutConfig
from ovlt.config.foreign import FOREIGN
from ovlt.config.load import SMOKE_RECIPE, leaves, load_recipe

RECIPES = sorted(SMOKE_RECIPE.parent.glob("*.toml"))


def recipe(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_recipe(path, list(overrides))


def refusal(*overrides: str, text: str | None = None, tmp_path: Path | None = None) -> str:
    path = None
    if text is not None and tmp_path is not None:
        path = tmp_path / "mine.toml"
        path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_recipe(path, list(overrides))
    assert not isinstance(caught.value, ValidationError)  # a sentence, not pydantic's pages
    return str(caught.value)


# --- defaults ---------------------------------------------------------------------------------


def test_the_defaults_of_grpo_are_the_papers() -> None:
    """OpenVLThinker (arXiv 2503.17352): its GRPO stage and objective."""
    grpo = GrpoConfig()
    assert (grpo.prompts_per_step, grpo.updates_per_rollout, grpo.rollout.n) == (512, 4, 5)
    assert (grpo.optim.lr, grpo.optim.weight_decay, grpo.optim.schedule) == (1e-6, 1e-2, "constant")
    assert grpo.optim.warmup_steps == grpo.optim.warmup_ratio == 0
    assert grpo.advantage_std
    assert not grpo.dynamic_sampling
    loss = LossConfig()
    assert grpo.loss == loss
    assert (loss.clip_low, loss.clip_high, loss.dual_clip) == (0.2, 0.3, 3.0)
    assert (loss.kl_coef, loss.kl_estimator) == (1e-2, "k3")
    assert (loss.ratio, loss.aggregation, loss.entropy_coef) == ("token", "token_mean", 0.0)
    assert (loss.importance, loss.importance_cap) == ("truncate", 2.0)
    rollout = RolloutConfig()
    assert (rollout.temperature, rollout.top_p) == (1.0, 1.0)
    assert rollout.max_response_tokens == 2048
    assert Recipe().reward.function == "answer"


def test_a_part_of_a_table_leaves_the_rest_at_its_own_defaults(tmp_path: Path) -> None:
    """[sft.optim] and [base.optim] have rates of their own; naming another key keeps them."""
    got = recipe(
        tmp_path,
        "[sft.optim]\nwarmup_steps = 3\n"
        "[base.optim]\nbetas = [0.9, 0.95]\n"
        "[grpo.optim]\neps = 1e-6\n",
    )
    assert (got.sft.optim.lr, got.sft.optim.schedule) == (5e-6, "cosine")
    assert (got.sft.optim.warmup_ratio, got.sft.optim.warmup_steps) == (0.1, 3)
    assert (got.base.optim.lr, got.base.optim.warmup_steps) == (2e-3, 20)
    assert (got.grpo.optim.lr, got.grpo.optim.eps) == (1e-6, 1e-6)
    for part, whole in ((got.sft, Recipe().sft), (got.base, Recipe().base)):
        changed = {"warmup_steps", "betas"}
        assert part.optim.model_dump(exclude=changed) == whole.optim.model_dump(exclude=changed)


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert recipe(tmp_path, "") == Recipe()


def test_every_key_has_a_sentence() -> None:
    def walk(model: type[BaseModel], prefix: str) -> list[str]:
        bad = []
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                assert isinstance(info.default, kind)
                bad += walk(kind, f"{prefix}{name}.")
            elif not (info.description or "").endswith("."):
                bad.append(prefix + name)
        return bad

    assert walk(Recipe, "") == []


def test_a_recipe_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().grpo.steps = 3  # type: ignore[misc]


# --- the recipes of the repository ------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_survives_its_own_record(path: Path, tmp_path: Path) -> None:
    loaded = load_recipe(path)
    record = tmp_path / "recipe.json"
    record.write_text(json.dumps(loaded.resolved()))
    assert load_recipe(record) == loaded
    assert load_recipe(record, ["--grpo.steps=3"]).grpo.steps == 3


def test_the_smoke_recipe_is_the_default_and_hangs_together() -> None:
    smoke = load_recipe()
    assert smoke == load_recipe(SMOKE_RECIPE)
    world = Path(smoke.synthetic.folder)
    for path in (smoke.sft.data, smoke.grpo.data, smoke.data.validation, smoke.data.held_out):
        assert Path(smoke.expand(path)).parent == world  # made by the recipe itself
    assert Path(smoke.model.path) == Path(smoke.base.folder) / "model"
    assert Path(smoke.expand(smoke.grpo.start)) == smoke.folder / smoke.sft.stage / "model"
    # The pictures of the world pass without a resize, and the questions fit.
    assert smoke.synthetic.size % 28 == 0
    assert smoke.model.min_pixels <= smoke.synthetic.size**2 <= smoke.model.max_pixels
    assert smoke.evaluate.max_response_tokens == smoke.grpo.rollout.max_response_tokens
    # Where it leaves the paper, as recipe and README say: one update per rollout, no KL, a decay.
    assert smoke.grpo.updates_per_rollout == 1
    assert smoke.grpo.loss == LossConfig(kl_coef=0.0)
    assert smoke.grpo.optim.schedule != "constant"
    assert set(smoke.synthetic.styles) == {"tally", "scan", "direct"}


# --- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("--run.seed=7", "run.seed", 7),
        ("run.seed=7", "run.seed", 7),
        ("--sft.optim.lr=1e-3", "sft.optim.lr", 1e-3),
        ("--sft.epochs=2", "sft.epochs", 2.0),
        ("--sft.optim.betas=[0.8, 0.9]", "sft.optim.betas", (0.8, 0.9)),
        ("--grpo.dynamic_sampling=true", "grpo.dynamic_sampling", True),
        ("--grpo.dynamic_sampling=False", "grpo.dynamic_sampling", False),
        ("--sft.start=runs/a b/model", "sft.start", "runs/a b/model"),
        ('--sft.start="runs/x"', "sft.start", "runs/x"),
        ("--grpo.start=", "grpo.start", ""),
        ("--reward.function=my.py:score", "reward.function", "my.py:score"),
        ("--data.suffix= a = b", "data.suffix", " a = b"),
        ('--sft.title=it\'s "so"', "sft.title", 'it\'s "so"'),
        ("--run.folder=7", "run.folder", "7"),
        ("--run.folder=2026-01-31", "run.folder", "2026-01-31"),
        ("--run.folder=1e-3", "run.folder", "1e-3"),
        ("--run.wandb=true", "run.wandb", "true"),
        ("--synthetic.families={bars = 1.0}", "synthetic.families", {"bars": 1.0}),
        ("--synthetic.families.charts=0.5", "synthetic.families.charts", 0.5),
    ],
)
def test_overrides_do_what_they_say(text: str, path: str, expected: Any) -> None:
    value: Any = load_recipe(None, [text])
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_an_override_changes_nothing_else_and_the_last_one_counts() -> None:
    got = load_recipe(None, ["--grpo.steps=3", "--grpo.rollout.n=2", "--grpo.steps=4"])
    plain = load_recipe()
    assert (got.grpo.steps, got.grpo.rollout.n) == (4, 2)
    back = got.model_copy(
        update={
            "grpo": got.grpo.model_copy(
                update={
                    "steps": plain.grpo.steps,
                    "rollout": got.grpo.rollout.model_copy(update={"n": plain.grpo.rollout.n}),
                }
            )
        }
    )
    assert back == plain


def test_folder_and_seed_are_filled_in() -> None:
    got = load_recipe(None, ["--run.folder=runs/s{seed}", "--run.seed=4"])
    assert got.folder == Path("runs/s4")
    assert got.expand("{folder}/sft{seed}/model") == "runs/s4/sft4/model"
    assert got.expand("{other} {}") == "{other} {}"


# --- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--grop.steps=3", "unknown key 'grop'; did you mean 'grpo'?"),
        ("--grpo.stpes=3", "unknown key 'grpo.stpes'; did you mean 'steps'?"),
        ("--grpo.rollout.temprature=1", "'grpo.rollout.temprature'; did you mean 'temperature'?"),
        ("--grpo.loss.clip_hi=0.3", "unknown key 'grpo.loss.clip_hi'; did you mean 'clip_high'?"),
        ("--sft.optim.weigth_decay=0", "'sft.optim.weigth_decay'; did you mean 'weight_decay'?"),
        ("--run.zzzzzz=3", "unknown key 'run.zzzzzz'; known here: folder, seed, resume"),
        ("--seed=3", "unknown key 'seed'; did you mean 'run.seed'?"),
        ("--grpo.lr=1e-6", "unknown key 'grpo.lr'; did you mean 'grpo.optim.lr'?"),
        ("--grpo.optim.n=4", "unknown key 'grpo.optim.n'; did you mean 'grpo.rollout.n'?"),
        ("--zzzzzz=3", "unknown key 'zzzzzz'; known here: run, model, data"),
        ("--grpo.steps.x=3", "grpo.steps"),
        ("--grpo.beta=0.04", "unknown key 'grpo.beta'; did you mean 'grpo.loss.kl_coef'?"),
        ("--grpo.learning_rate=1e-6", "'grpo.learning_rate'; did you mean 'grpo.optim.lr'?"),
        ("--sft.learning_rate=1e-6", "'sft.learning_rate'; did you mean 'sft.optim.lr'?"),
        ("--trainer.n_gpus_per_node=8", "unknown key 'trainer'; known here: run"),
    ],
)
def test_unknown_keys_are_answered_with_the_nearest(override: str, expected: str) -> None:
    said = refusal(override)
    assert expected in said
    assert "smoke.toml" in said or "is a value, not a table" in said


def test_the_keys_that_other_trainers_keys_are_answered_with_exist() -> None:
    every = {key for key, _ in leaves(Recipe)}
    for key, ours in FOREIGN.items():
        assert ours, key
        assert every.issuperset(ours), key
        assert key not in {name.split(".")[-1] for name in every}, f"{key} is found without this"


def test_unknown_keys_in_a_file_are_answered_all_at_once(tmp_path: Path) -> None:
    text = "[grpo]\nstps = 3\n[sft.optim]\nlearning_rate = 1e-3\n[modle]\npath = 'x'"
    said = refusal(text=text, tmp_path=tmp_path)
    assert str(tmp_path / "mine.toml") in said
    for part in ("did you mean 'steps'?", "'sft.optim.learning_rate'", "did you mean 'model'?"):
        assert part in said
    assert "https://" not in said  # pydantic's own links help nobody here


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--grpo.steps=many", "grpo.steps: Input should be a valid integer"),
        ("--grpo.steps=2.5", "grpo.steps: Input should be a valid integer"),
        ("--grpo.steps=0", "grpo.steps: Input should be greater than 0"),
        ("--run.seed=-1", "run.seed: Input should be greater than or equal to 0"),
        ("--grpo.optim.lr=0", "grpo.optim.lr: Input should be greater than 0"),
        ("--grpo.optim.lr=nan", "grpo.optim.lr: Input should be"),
        ("--grpo.optim.lr=inf", "grpo.optim.lr: Input should be a finite number"),
        ("--grpo.loss.dual_clip=nan", "grpo.loss.dual_clip: Input should be a finite number"),
        ("--grpo.loss.entropy_coef=-inf", "entropy_coef: Input should be a finite number"),
        ("--synthetic.families.bars=inf", "families.bars: Input should be a finite number"),
        ("--data.max_bad_share=2", "data.max_bad_share: Input should be less than or equal to 1"),
        ("--sft.optim.betas=[0.9, 1.0]", "sft.optim.betas.1: Input should be less than 1"),
        ("--sft.optim.betas=[0.9]", "sft.optim.betas.1: Field required"),
        ("--run.device=gpu", "run.device: Input should be 'auto', 'cpu' or 'cuda'"),
        ("--grpo.loss.kl_estimator=k4", "kl_estimator: Input should be 'k1', 'k2' or 'k3'"),
        ("--grpo.dynamic_sampling=maybe", "grpo.dynamic_sampling: Input should be a valid boolean"),
        ("--grpo=3", "grpo: Input should be a valid dictionary"),
        ("--grpo.steps=true", "steps is true, but it must be a number"),
        ("--sft.optim.lr=true", "lr is true, but it must be a number"),
        ("--run.seed=false", "seed is false, but it must be a number"),
        ("--grpo.stage=", "grpo.stage: '' is no name of a folder inside run.folder"),
        ("--grpo.stage=../other", "grpo.stage: '../other' is no name of a folder"),
        ("--evaluate.stage=/tmp/x", "evaluate.stage: '/tmp/x' is no name of a folder"),
        ("--run.folder=", "run.folder is '': name a folder"),
        ("--run.folder={folder}/x", "run.folder is '{folder}/x': name a folder"),
        ("--run.folder=runs/{name}", "{name} is not filled in; {seed} and {folder} are"),
        ("--grpo.loss.clip_low=1", "grpo.loss.clip_low: Input should be less than 1"),
        ("--grpo.rollout.top_p=0", "grpo.rollout.top_p: Input should be greater than 0"),
    ],
)
def test_mistyped_values_name_their_key(override: str, expected: str) -> None:
    assert expected in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--grpo.rollout.top_p=0.99"], "set top_p = 1.0 and top_k = 0, or importance = 'off'"),
        (["--grpo.rollout.top_k=50"], "set top_p = 1.0 and top_k = 0, or importance = 'off'"),
        (["--grpo.rollout.n=1"], "rollout.n must be at least 2"),
        (
            ["--grpo.prompts_per_step=10", "--grpo.updates_per_rollout=4"],
            "prompts_per_step=10 does not divide into grpo.updates_per_rollout=4 equal",
        ),
        (["--grpo.token_budget=100"], "a sample is never cut, so raise the budget or lower the"),
        (
            ["--distill.engine.tensor_parallel=2", "--distill.ranks=2"],
            "set distill.ranks to 1 or 0",
        ),
        (["--grpo.loss.dual_clip=0.5"], "dual_clip must exceed 1 (the paper uses 3.0), or be 0"),
        (["--grpo.loss.dual_clip=-3"], "dual_clip must exceed 1"),
        (["--model.min_pixels=4000", "--model.max_pixels=3000"], "raise max_pixels or lower min"),
        (
            ["--model.chat_template_kwargs.tokenize=true"],
            "model.chat_template_kwargs: ovlt gives the chat template the keyword 'tokenize' its",
        ),
        (
            ["--distill.teacher_chat_template_kwargs.messages=x"],
            "distill.teacher_chat_template_kwargs: ovlt gives the chat template the keyword 'mess",
        ),
        (
            ["--distill.captioner_chat_template_kwargs={return_dict = true, a = 1}"],
            "distill.captioner_chat_template_kwargs: ovlt gives the chat template the keyword 'ret",
        ),
    ],
)
def test_impossible_combinations_say_how_to_mend_them(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--grpo.rollout.top_p=0.99", "--grpo.loss.importance=off"],
        ["--grpo.loss.dual_clip=0"],
        ["--grpo.prompts_per_step=12", "--grpo.updates_per_rollout=4"],
        ["--model.min_pixels=3136", "--model.max_pixels=3136"],
    ],
)
def test_the_mends_that_are_offered_work(overrides: list[str]) -> None:
    load_recipe(None, overrides)


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe at .*no\.toml.*smoke\.toml"):
        load_recipe(tmp_path / "no.toml")
    with pytest.raises(ValueError, match="no recipe at"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.toml", b"[grpo\nsteps = 3", r"not valid TOML.*line 1"),
        ("a.toml", b"steps = 3\nsteps = 4", "not valid TOML"),
        ("a.toml", b"\xff\xfe", "not valid TOML"),
        ("a.json", b"{", "not valid TOML"),
        ("a.json", b"[1, 2]", "must hold tables"),
        ("a.json", b"3", "must hold tables"),
        ("a.json", b'{"grpo": {"steps": NaN}}', "grpo.steps"),
        ("a.json", b'{"grpo": null}', "grpo: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=expected) as caught:
        load_recipe(tmp_path / name, ["--run.seed=1"])
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("text", ["", "--", "--grpo.steps", "--=3", "grpo.steps 3"])
def test_an_override_without_a_key_or_value_shows_how_it_looks(text: str) -> None:
    assert "an override looks like --grpo.steps=20" in refusal(text)
