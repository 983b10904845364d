"""Checkpoints on one and two real ranks (gloo, FSDP2), and the claim on a run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from ovlt.run.folder import claim_run_folder
from ovlt.train.checkpoint import latest, passed_over

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "workers" / "checkpoint_worker.py"
RUNS = [("two", 0), ("two", 1), ("one", 0)]  # (folder, rank)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workers left behind: one run under torchrun on two ranks, one process alone."""
    home = tmp_path_factory.mktemp("checkpoints")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = f"{WORKER.parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    for folder, arguments in [
        ("two", [*torchrun, str(WORKER), str(home / "two")]),
        ("one", [str(WORKER), str(home / "one"), str(home / "two" / "tied" / "step_000002")]),
    ]:
        (home / folder).mkdir()
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return home


def seen(home: Path, folder: str, rank: int) -> dict:
    return json.loads((home / folder / f"rank{rank}.json").read_text())


@pytest.mark.parametrize(("folder", "rank"), RUNS)
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_two_and_two_steps_are_four(home: Path, folder: str, rank: int, head: str) -> None:
    run = seen(home, folder, rank)[head]
    assert run["resumed"] == run["straight"]  # weights, moments, hyper-parameters, draws: bitwise
    assert run["loaded_is_saved"]
    assert run["tied"] == (head == "tied")
    assert {key: run["state"][key] for key in ("step", "best", "sampler")} == {
        "step": 2,
        "best": 2.1,
        "sampler": [1, None],
    }


@pytest.mark.parametrize(("folder", "rank"), RUNS)
def test_saving_disturbs_nothing(home: Path, folder: str, rank: int) -> None:
    run = seen(home, folder, rank)["tied"]
    assert run["undisturbed"] == run["straight"]


def test_ranks_draw_differently_and_get_their_own_generator_back(home: Path) -> None:
    draws = [seen(home, "two", rank)["tied"]["resumed"]["draws"] for rank in (0, 1)]
    assert draws[0] != draws[1]


@pytest.mark.parametrize(("folder", "rank"), RUNS)
def test_before_the_first_step_there_is_no_optimizer_state(
    home: Path, folder: str, rank: int
) -> None:
    run = seen(home, folder, rank)["first"]
    assert run["empty"]
    assert run["resumed"] == run["straight"]


@pytest.mark.parametrize(("folder", "rank"), RUNS)
def test_a_foreach_checkpoint_continues_in_a_fused_optimizer(
    home: Path, folder: str, rank: int
) -> None:
    assert seen(home, folder, rank)["kernel"] == {"fused": True, "same": True}


@pytest.mark.parametrize(("folder", "rank"), RUNS)
def test_large_checkpoints_are_split_into_several_files(home: Path, folder: str, rank: int) -> None:
    run = seen(home, folder, rank)["many"]
    assert run["files"] > 4
    assert run["same"]


@pytest.mark.parametrize(
    ("reader", "rank", "restored"),
    [("of1rank0", 0, True), ("of2rank0", 0, True), ("of2rank1", 1, False)],
)
def test_another_number_of_ranks_loads_with_a_warning(
    home: Path, reader: str, rank: int, restored: bool
) -> None:
    run = json.loads((home / "one" / f"{reader}.json").read_text())
    assert run["same"]
    assert run["generators_restored"] == restored
    assert len(run["warnings"]) == (rank == 0)


@pytest.mark.parametrize(("folder", "rank"), RUNS)
def test_refusals_say_what_to_do(home: Path, folder: str, rank: int) -> None:
    run = seen(home, folder, rank)["refusals"]
    texts = run["seen"]
    for case, part in {
        "truncated": ".safetensors has ",
        "missing": ".safetensors is missing",
        "nothing": "no such folder",
        "untied": "model.lm_head.weight is not in the checkpoint",
        "shape": "model.embed.weight is float32 [11, 5] there and float32 [13, 5] here",
        "scribbled": "cannot be read",
        "tuple": "state.at is a tuple",
        "numpy": "state.best is a float64",
    }.items():
        assert part in texts[case], case
    for case in ("truncated", "missing", "nothing", "scribbled"):
        assert "resume from" in texts[case]
    for case in ("untied", "shape"):
        assert "another run folder" in texts[case]
    assert "rank 1 differs from that of rank 0" in texts.get(
        "unequal", "rank 1 differs from that of rank 0"
    )
    assert run["unchanged"]  # up to here, the live model and optimizer were not touched


@pytest.mark.parametrize(("folder", "rank"), RUNS)
def test_the_newest_two_are_kept(home: Path, folder: str, rank: int) -> None:
    assert seen(home, folder, rank)["refusals"]["kept"] == ["step_000002", "step_000003"]


@pytest.mark.parametrize("case", ["truncated", "missing"])
def test_latest_passes_over_the_torn(home: Path, case: str, tmp_path: Path) -> None:
    (tmp_path / "step_000001").symlink_to(home / "two" / "refusals" / "step_000002")
    (tmp_path / "step_000010").symlink_to(home / "two" / "broken" / case)
    (tmp_path / "step_000011.tmp-7").symlink_to(home / "two" / "refusals" / "step_000003")
    (tmp_path / "step_000012").mkdir()
    assert latest(tmp_path) == tmp_path / "step_000001"
    assert latest(tmp_path / "none") is None
    text = passed_over(tmp_path)
    assert text.startswith("step_000012 (")
    assert "step_000010 (" in text
    assert "step_000001" not in text
    assert not passed_over(home / "two" / "refusals")


KILLED = {
    # point: (newest complete checkpoint, what lies in the folder)
    "1 first tensor file": ("step_000002", ["step_000002", "step_000003.tmp"]),
    "1 manifest": ("step_000002", ["step_000002", "step_000003.tmp"]),
    "1 rename": ("step_000002", ["step_000002", "step_000003.tmp"]),
    "1 prune": ("step_000003", ["step_000002", "step_000003"]),
    "2 rename": ("step_000002", ["step_000002", "step_000003.tmp"]),
}


@pytest.mark.parametrize("case", KILLED)
def test_a_run_killed_in_save_resumes_to_the_same_bits(home: Path, case: str) -> None:
    run = json.loads((home / "one" / "killed.json").read_text())[case]
    newest, left = KILLED[case]
    assert run["status"] == -9
    assert run["latest"] == newest
    assert run["left"] == left
    assert run["resumed_status"] == 0
    assert run["at_the_end"] == (left if newest == "step_000003" else ["step_000003"])
    ranks = [("one", 0)] if case.startswith("1") else [("two", 0), ("two", 1)]
    assert run["resumed"] == [seen(home, *rank)["tied"]["straight"] for rank in ranks]


def test_only_safetensors_and_json_on_disk(home: Path) -> None:
    folders = [path.parent for path in home.glob("**/step_*/manifest.json")]
    assert len(folders) > 10
    for folder in folders:
        if "broken" in folder.parts:
            continue
        for file in folder.iterdir():
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as tensors:
                    assert tensors.keys()
            else:
                assert file.suffix == ".json", file
                json.loads(file.read_text())


# ---- the claim on a run folder ---------------------------------------------------------------


def recipe(**grpo: object) -> dict:
    run = {"folder": "runs/0", "resume": "never", "seed": 3}
    return {"run": run, "grpo": {"steps": 80, "lr": 1e-6, "betas": (0.9, 0.99), **grpo}}


def claim(folder: Path, recipe: dict, resume: str) -> None:
    """Claim a folder and begin."""
    claim_run_folder(folder, recipe, resume).record()


def started(folder: Path) -> Path:
    claim(folder, recipe(), "never")
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def test_a_fresh_folder_is_claimed_and_holds_the_recipe(tmp_path: Path) -> None:
    for resume in ("never", "auto", "never"):  # nothing was trained: each may start
        claim(tmp_path / "a" / "b", recipe(), resume)
    kept = json.loads((tmp_path / "a" / "b" / "recipe.json").read_text())
    assert kept["grpo"] == {"steps": 80, "lr": 1e-6, "betas": [0.9, 0.99]}


def test_a_run_is_continued_only_when_asked(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl.*--resume auto.*--run\.folder"):
        claim(tmp_path, recipe(), "never")
    claim(tmp_path, recipe(), "auto")


def test_checkpoints_alone_are_a_run_too(home: Path, tmp_path: Path) -> None:
    claim(tmp_path, recipe(), "never")
    (tmp_path / "checkpoints").symlink_to(home / "two" / "tied")
    with pytest.raises(ValueError, match="step_000002"):
        claim(tmp_path, recipe(), "never")


def test_another_recipe_is_refused_with_both_values(tmp_path: Path) -> None:
    started(tmp_path)
    for resume in ("auto", "never"):
        with pytest.raises(ValueError, match=r"grpo\.lr was 1e-06, is 0\.001.*--run\.folder"):
            claim(tmp_path, recipe(lr=1e-3), resume)
    with pytest.raises(ValueError, match=r"grpo\.n was absent, is 8"):
        claim(tmp_path, recipe(n=8), "auto")
    assert json.loads((tmp_path / "recipe.json").read_text())["grpo"]["lr"] == 1e-6


def test_what_may_change_may_change(tmp_path: Path) -> None:
    started(tmp_path)
    changed = recipe(save_every=7)
    changed["run"] |= {"folder": "elsewhere", "resume": "auto"}
    claim(tmp_path, changed, "auto")
    with pytest.warns(UserWarning, match=r"grpo\.steps was 80, is 100"):
        claim(tmp_path, changed | {"grpo": changed["grpo"] | {"steps": 100}}, "auto")
    assert json.loads((tmp_path / "recipe.json").read_text())["grpo"]["steps"] == 100


def test_a_run_without_recipe_or_with_a_damaged_one_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"no recipe\.json"):
        claim(tmp_path, recipe(), "auto")
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        claim(tmp_path, recipe(), "auto")
    with pytest.raises(ValueError, match="'never' or 'auto'"):
        claim(tmp_path, recipe(), "yes")
