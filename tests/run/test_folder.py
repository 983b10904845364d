"""Whose a run folder is: the same run may go on, another one or an older version is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import environment

from ovlt import __version__
from ovlt.config.changes import MEASURES
from ovlt.run.folder import claim_run_folder
from ovlt.run.version import FORMAT, version_record

RECIPE: dict[str, Any] = {"run": {"seed": 0}, "grpo": {"steps": 4}}


def claim(folder: Path, recipe: dict[str, Any], resume: str) -> None:
    """Claim a folder and begin."""
    claim_run_folder(folder, recipe, resume).record()


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "recipe.json").read_text())


def test_a_record_says_which_version_made_it(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, "never")
    assert record(tmp_path) == RECIPE | {"ovlt": __version__, "format": FORMAT}
    claim(tmp_path, RECIPE, "auto")  # and is no change of the recipe


@pytest.mark.parametrize(
    ("marks", "version"),
    [({}, "0.1"), ({"ovlt": "0.1.9", "format": 1}, "0.1.9"), ({"ovlt": "9.0", "format": 7}, "9.0")],
)
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_folder_of_another_version_is_refused_by_its_name(
    tmp_path: Path, marks: dict[str, Any], version: str, resume: str
) -> None:
    older = {"run": {"seed": 0}, "grpo": {"steps": 4, "reward": {"function": "answer"}}}
    text = json.dumps(older | marks)
    (tmp_path / "recipe.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=rf"was made by ovlt {version}, .*its own version") as told:
        claim(tmp_path, RECIPE, resume)
    assert str(tmp_path) in str(told.value)
    assert (tmp_path / "recipe.json").read_text() == text


def test_another_recipe_is_refused_and_a_longer_run_is_not(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, "never")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"another recipe: run\.seed was 0, is 1"):
        claim(tmp_path, RECIPE | {"run": {"seed": 1}}, "auto")
    with pytest.warns(UserWarning, match=r"another length: grpo\.steps was 4, is 9"):
        claim(tmp_path, RECIPE | {"grpo": {"steps": 9}}, "auto")
    with pytest.raises(ValueError, match="continue it with `--resume auto`"):
        claim(tmp_path, RECIPE | {"grpo": {"steps": 9}}, "never")


def test_a_run_from_before_prompts_were_shared_goes_on(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, "never")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    shared = RECIPE | {"grpo": RECIPE["grpo"] | {"share_prompts": True}}
    claim(tmp_path, shared, "auto")
    assert record(tmp_path)["grpo"]["share_prompts"]


def test_a_key_that_the_run_did_not_know_yet_had_its_default(tmp_path: Path) -> None:
    """So a run of an earlier version goes on, unless the new key asks for something else."""
    claim(tmp_path, RECIPE, "never")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    newer = RECIPE | {"data": {"ignore": []}, "reward": {"overlong_tokens": 0}}
    claim(tmp_path, newer, "auto")
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE | version_record()))
    with pytest.raises(ValueError, match=r"reward\.overlong_tokens was 0, is 64"):
        claim(tmp_path, RECIPE | {"reward": {"overlong_tokens": 64}}, "auto")


# ---- contents ----------------------------------------------------------------------------------


def begun(folder: Path, recipe: dict[str, Any], contents: dict[str, str]) -> None:
    """A run that has logged a step."""
    first = claim_run_folder(folder, recipe, "never")
    first.compare(contents)
    first.record()
    (folder / "metrics.jsonl").write_text("{}\n")


def test_a_start_that_came_to_no_step_binds_nobody(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, "never")  # and then failed
    (tmp_path / "metrics.jsonl").write_text("")
    other = RECIPE | {"run": {"seed": 1}}
    claim(tmp_path, other, "never")
    assert record(tmp_path)["run"] == {"seed": 1}


def test_nothing_but_a_lock_is_written_before_the_run_begins(tmp_path: Path) -> None:
    claim_run_folder(tmp_path / "a", RECIPE, "never").compare({"rows": "1"})
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".lock"]


def test_other_contents_are_refused_by_name_or_accepted(tmp_path: Path) -> None:
    contents = {"rows of grpo.data": "1", "start: weights": "2", "reward.function": "3"}
    begun(tmp_path, RECIPE, contents)
    for changed in ({"rows of grpo.data": "x"}, {"start: weights": "y", "reward.function": "z"}):
        again = claim_run_folder(tmp_path, RECIPE, "auto")
        with pytest.raises(ValueError, match="other contents") as caught:
            again.compare(contents | changed)
        assert all(name in str(caught.value) for name in changed)
        assert not any(name in str(caught.value) for name in contents.keys() - changed.keys())
        with pytest.warns(UserWarning, match=r"run\.accept_changes"):
            again.compare(contents | changed, accept=True)
    claim_run_folder(tmp_path, RECIPE, "auto").compare(contents)
    again.record()
    assert json.loads((tmp_path / "contents.json").read_text()) == contents | changed
    claim_run_folder(tmp_path, RECIPE, "auto").compare(contents | changed)


def test_a_path_may_change_and_its_contents_may_not(tmp_path: Path) -> None:
    recipe = RECIPE | {"grpo": {"steps": 4, "data": "a.parquet"}}
    moved = RECIPE | {"grpo": {"steps": 4, "data": "b.parquet"}}
    begun(tmp_path, recipe, {"rows of grpo.data": "1"})
    claim_run_folder(tmp_path, moved, "auto").compare({"rows of grpo.data": "1"})
    with pytest.raises(ValueError, match=r'grpo\.data was "a\.parquet", is "b\.parquet"'):
        claim_run_folder(tmp_path, moved, "auto").compare({"rows of grpo.data": "2"})


def test_a_run_of_before_there_were_contents_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, RECIPE, {})
    (tmp_path / "contents.json").unlink()
    claim_run_folder(tmp_path, RECIPE, "auto").compare({"rows of grpo.data": "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.tensorboard", False), ("run.profile", 3), ("run.wandb", "x"),
        ("data.workers", 9), ("data.max_bad_share", 0.5), ("reward.workers", 9),
        ("engine.gpu_memory", 0.5), ("engine.kv_cache_gib", 2.0), ("engine.max_sequences", 4),
        ("model.activation_checkpointing", True), ("model.reshard", False),
        ("grpo.token_budget", 99), ("grpo.log_groups", 0), ("grpo.save_every", 7),
        ("grpo.title", "x"), ("data.validation", "v"), ("data.held_out", "h"),
        ("data.validation_questions", 9), ("grpo.eval_every", 9), ("reward.verdict", "exact"),
    ],
)  # fmt: skip
def test_memory_speed_logging_and_measuring_may_change(
    tmp_path: Path, key: str, value: object
) -> None:
    table, name = key.split(".")
    before = {"run": {"seed": 0}, table: {name: "before"}}
    begun(tmp_path, before, {})
    after = {"run": {"seed": 0}, table: {name: value}}
    claim_run_folder(tmp_path, after, "auto", may_change=MEASURES)


@pytest.mark.parametrize(
    "key",
    [
        "run.seed", "run.deterministic", "model.compute_dtype", "model.max_pixels", "data.suffix",
        "model.freeze_vision", "engine.dtype", "engine.backend", "reward.timeout",
        "reward.max_chars", "grpo.prompts_per_step", "grpo.optim", "grpo.loss", "grpo.rollout",
        "sft.batch_samples", "sft.optim", "grpo.skip_zero_advantage", "grpo.suffix", "grpo.keep",
    ],
)  # fmt: skip
def test_what_decides_the_weights_may_not_change(tmp_path: Path, key: str) -> None:
    table, name = key.split(".")
    begun(tmp_path, {"x": {"y": 0}, table: {name: "before"}}, {})
    with pytest.raises(ValueError, match=f'{key} was "before", is "after"'):
        claim_run_folder(tmp_path, {"x": {"y": 0}, table: {name: "after"}}, "auto")


# ---- one live run per folder -------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from ovlt.run import folder
folder.claim_run_folder(Path(sys.argv[1]), {"a": {"b": 1}}, "never")
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_names_the_process_and_is_free_when_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovlt.run.folder.PATIENCE_S", 0.3)
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="is in use") as caught:
        claim_run_folder(tmp_path, {"a": {"b": 1}}, "auto")
    assert f"process {other.pid} on {socket.gethostname()}" in str(caught.value)
    other.kill()
    other.wait()
    claim_run_folder(tmp_path, {"a": {"b": 1}}, "auto")
    claim_run_folder(tmp_path, {"a": {"b": 1}}, "auto")  # the same process again
