"""``ovlt.cycle`` as a user runs it: whole, killed at random moments, and with mistakes.

The model is ``chain.py``'s, which answers in the right form and is right by chance, so that every
stage has something to learn from. Stages are forks of a process that has imported everything, but
where a cycle is killed the second, and every other one after it, is the real ``python -m``.
OVLT_KILLS and OVLT_RANKS ask for more kills, on more ranks.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from helpers import benchmark_files
from helpers.chain import say_by_chain, write_questions
from helpers.commands import Command, Server
from helpers.home import Home
from helpers.tiny import tiny_folder
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

KILLS = int(os.environ.get("OVLT_KILLS", "3"))
RANKS = int(os.environ.get("OVLT_RANKS", "1"))
RECIPE = """
[run]
device = "cpu"
tensorboard = false
folder = "{home}/whole"
[model]
path = "{home}/model"
compute_dtype = "float32"
[data]
workers = 1
validation = "{home}/questions.jsonl"
validation_questions = 5
held_out = "{home}/held_out.jsonl"
[sft]
steps = 3
batch_samples = 4
token_budget = 400
save_every = 1
[sft.optim]
lr = 1e-4
[grpo]
data = "{home}/questions.jsonl"
steps = 3
prompts_per_step = 4
updates_per_rollout = 1
token_budget = 300
save_every = 2
eval_every = 1
keep = "best"
[grpo.optim]
lr = 1e-4
[grpo.loss]
kl_coef = 0.0
[grpo.rollout]
n = 3
max_prompt_tokens = 160
max_response_tokens = 12
[engine]
max_sequences = 16
kv_cache_gib = 0.05
[reward]
workers = 1
[evaluate]
max_prompt_tokens = 160
n = 2
max_response_tokens = 12
[distill]
data = "{home}/questions.jsonl"
teacher = "{home}/model"
caption_request = "Describe the image."
teacher_request = "{caption} {question}"
temperature = 1.0
shard = 4
max_prompt_tokens = 100
max_caption_tokens = 12
max_response_tokens = 12
ranks = {ranks}
[distill.engine]
max_sequences = 16
[cycle]
ranks = {ranks}
[[cycle.iterations]]
grpo = [{ name = "frozen", model.freeze_vision = true }, { name = "all" }]
[[cycle.iterations]]
"""
STAGES = [
    "base_answers", "distill1", "sft1", "grpo1-frozen", "grpo1-all", "distill2", "sft2", "grpo2",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Home:
    folder = tmp_path_factory.mktemp("cycle")
    say_by_chain(tiny_folder(folder / "model"))
    write_questions(folder / "questions.jsonl", 13)
    write_questions(folder / "held_out.jsonl", 7)
    return Home(folder, RECIPE.replace("{ranks}", str(RANKS)), server)


def run(home: Home, name: str) -> str:
    """Run a cycle to its end; return what it prints."""
    command = home.start("cycle", name)
    command.finish()
    return command.stdout()


def mistake(home: Home, name: str, *arguments: str) -> str:
    """Return the one sentence that a mistake ends with."""
    return home.start("cycle", name, *arguments).refusal().strip().splitlines()[-1]


@pytest.fixture(scope="module")
def second(home: Home) -> Iterator[Command]:
    """A cycle in a folder that another one has; it waits 20 s for that, while others run."""
    held = home.run_folder("held")
    held.mkdir(parents=True)
    with (held / "cycle.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield home.start("cycle", "held")


@pytest.fixture(scope="module")
def whole(home: Home, second: Command) -> Path:
    """The folder of a cycle that nothing disturbed."""
    assert "report.html" in run(home, "whole")
    return home.run_folder("whole")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model-00001.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def stages(folder: Path) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in json.loads((folder / "cycle.json").read_text())["stages"]}


def test_a_cycle_runs_every_stage_and_measures_each_model(home: Home, whole: Path) -> None:
    finished = stages(whole)
    assert list(finished) == STAGES
    assert {stage["status"] for stage in finished.values()} == {"done"}
    assert all(stage["seconds"] > 0 for stage in finished.values())
    for name in STAGES:
        if not name.startswith("distill"):
            figures = json.loads((whole / name / "evaluation.json").read_text())
            assert figures["num_questions"] == 7
            assert set(figures["questions"]["source"]) == {"charts", "maps"}
            assert figures["keywords"]["wait"] == 0
    for number in (1, 2):
        rows = pq.read_table(whole / f"distill{number}" / "rows.parquet").to_pylist()
        assert rows
        assert all("</think>" in row["messages"][1]["content"] for row in rows)
    base = load_file(home.folder / "model" / "model.safetensors")
    frozen, free = weights(whole / "grpo1-frozen"), weights(whole / "grpo1-all")
    before = weights(whole / "sft1")
    tower = [name for name in base if "visual" in name]
    assert any(not torch.equal(before[name], base[name]) for name in tower)
    assert all(torch.equal(frozen[name], before[name]) for name in tower)
    assert any(not torch.equal(free[name], before[name]) for name in tower)
    assert not (whole / "grpo2" / "best").exists()
    assert "best" in json.loads((whole / "grpo2" / "stage.json").read_text())
    page = (whole / "report.html").read_text()
    assert "SFT-2" in page
    assert "GRPO-2" in page
    assert "GRPO-2" in (whole / "cycle.md").read_text()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_killed_at_random_moments_it_ends_with_the_same_weights(home: Home, whole: Path) -> None:
    rng = random.Random(20261121)
    kills = 0
    while kills < KILLS:
        if kills % 2 == 0:
            pid, seconds = home.start("cycle", "killed").pids[0], rng.uniform(0.5, 5)
        else:  # the real one, which spends most of its time on imports
            process = home.start_process("cycle", "killed")
            pid, seconds = process.pid, rng.uniform(8, 16)
        cycle = psutil.Process(pid)
        end = time.monotonic() + seconds
        while time.monotonic() < end and is_alive(cycle):
            time.sleep(0.05)
        if not is_alive(cycle):
            break
        started = cycle.children(recursive=True)
        cycle.kill()  # the cycle alone: what it started must end by itself
        kills += 1
        _, orphans = psutil.wait_procs(started, timeout=20)
        assert not orphans
    assert kills >= min(KILLS, 3), "it has ended before the kills have come"
    run(home, "killed")
    killed = home.run_folder("killed")
    assert {stage["status"] for stage in stages(killed).values()} == {"done"}
    for name in ("sft1", "grpo1-all", "sft2", "grpo2"):
        assert same(killed / name, whole / name), name
    for number in (1, 2):
        rows, expected = (
            pq.read_table(run / f"distill{number}" / "rows.parquet") for run in (killed, whole)
        )
        assert rows.equals(expected)


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(
    home: Home, whole: Path
) -> None:
    before = {name: (whole / name).stat().st_mtime_ns for name in STAGES}
    started = time.monotonic()
    run(home, "whole")
    assert {name: (whole / name).stat().st_mtime_ns for name in STAGES} == before
    assert time.monotonic() - started < 60
    message = mistake(home, "whole", "--sft.optim.lr=1e-3")
    assert message.startswith("ovlt cycle: ")
    assert "sft1" in message
    assert "sft.optim.lr was 0.0001, is 0.001" in message


def test_a_cycle_that_is_done_asks_the_benchmarks_that_are_named_later(
    home: Home, whole: Path
) -> None:
    benchmark_files.write_all(home.folder / "benchmarks")
    words = (
        "--until=sft1", "--evaluate.benchmark.names=mathvision,hallusionbench",
        f"--evaluate.benchmark.data={home.folder / 'benchmarks'}",
        "--evaluate.benchmark.check_counts=false", "--evaluate.benchmark.max_response_tokens=8",
        "--evaluate.benchmark.max_pixels=6272",
    )  # fmt: skip
    asked = home.start("cycle", "whole", *words)
    asked.finish()
    assert asked.stdout().count("public benchmarks") == 2  # the base model and sft1
    assert (whole / "sft1/benchmarks/mathvision-test/official/result.md").is_file()
    table = (whole / "cycle.md").read_text().partition("Public benchmarks")[2]
    assert "| MathVision (test, official) |" in table
    assert "HallusionBench (image, official), mean" in table
    assert "| SFT-1 | 0.0 [" in table
    assert "Public benchmarks" in (whole / "report.html").read_text()
    again = home.start("cycle", "whole", *words)
    again.finish()
    assert "public benchmarks" not in again.stdout()


def test_a_second_cycle_in_the_same_folder_is_refused(second: Command) -> None:
    assert "another `ovlt cycle` runs in" in second.refusal()


def test_other_rows_are_refused_for_the_stages_that_are_done(home: Home, whole: Path) -> None:
    rows = home.folder / "questions.jsonl"
    before = rows.read_text()
    rows.write_text(before + "\n" + before.splitlines()[0])
    message = mistake(home, "whole")
    assert f"made with other contents of {rows}" in message
    rows.write_text(before)
    run(home, "whole")


def test_no_correct_sample_at_all_ends_the_cycle_and_finished_stages_stay(home: Home) -> None:
    rows = [json.loads(line) for line in (home.folder / "questions.jsonl").open()]
    never = home.folder / "never.jsonl"
    never.write_text("\n".join(json.dumps(row | {"answer": "7"}) for row in rows[:3]))
    command = home.start("cycle", "never", f"--distill.data={never}")
    assert command.wait() == [1]
    assert "no trace is left to learn from" in command.stderr()
    assert "pass@1" in command.stderr()
    folder = home.run_folder("never")
    assert stages(folder)["base_answers"]["status"] == "done"
    assert stages(folder)["distill1"]["status"] != "done"
    assert not (folder / "sft1").exists()


def test_what_is_missing_is_said_before_anything_runs(home: Home) -> None:
    gone = home.folder / "gone.parquet"
    message = mistake(home, "gone", f"--cycle.validation={gone}")
    assert message.startswith(f"ovlt cycle: missing: {gone}")
    assert not (home.run_folder("gone") / "base_answers").exists()


def test_seeds_that_share_a_folder_are_refused(home: Home) -> None:
    assert "{seed} in run.folder" in mistake(home, "fixed", "--seeds=0,1")
    assert "--seeds=a" in mistake(home, "fixed", "--seeds=a")
    assert "--controls=sft: choose among single," in mistake(
        home, "fixed", "--controls=rejection,sft"
    )
