"""``ovlt evaluate --benchmark`` with a tiny model in vLLM; benchmarks as validation of a stage."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import benchmark_files as files
from helpers.chain import say_by_chain
from helpers.commands import Server, environment
from helpers.home import Home
from helpers.tiny import tiny_folder

from ovlt.data.worlds import synthetic

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

RECIPE = """
[run]
device = "cpu"
tensorboard = false
[model]
path = "{home}/model"
compute_dtype = "float32"
min_pixels = 3136
max_pixels = 12544
[data]
workers = 1
validation = "{home}/questions.parquet"
validation_questions = 2
[grpo]
data = "{home}/questions.parquet"
steps = 1
prompts_per_step = 2
updates_per_rollout = 1
token_budget = 420
eval_every = 1
log_groups = 0
[grpo.rollout]
n = 2
max_prompt_tokens = 400
max_response_tokens = 7
[engine]
max_sequences = 4
kv_cache_gib = 0.05
[reward]
workers = 1
[evaluate.benchmark]
data = "{home}/benchmarks"
check_counts = false
max_response_tokens = 8
max_pixels = 12544
validation = "mathvision,hallusionbench:all"
validation_questions = 3
workers = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Home:
    folder = tmp_path_factory.mktemp("benchmarks")
    tiny_folder(folder / "model", initializer_range=0.2)
    files.write_all(folder / "benchmarks")
    items = list(synthetic.generate(["shapes"], "train", 8, 5, synthetic.WorldSpec(size=84)))
    synthetic.write_questions(items, folder / "questions.parquet")
    return Home(folder, RECIPE, server)


NAMES = "mathvista,mathverse,mathvision,emma,hallusionbench,mmmu-pro"


def test_two_ranks_give_the_files_of_one_and_a_second_run_asks_nothing(home: Home) -> None:
    results: dict[int, dict[str, bytes]] = {}
    for ranks in (1, 2):
        out = home.folder / f"out{ranks}"
        words = (f"--evaluate.benchmark.names={NAMES}", f"--evaluate.benchmark.out={out}")
        home.start("evaluate", f"e{ranks}", *words, ranks=ranks).finish()
        results[ranks] = {
            str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.jsonl")
        }
    assert len(results[1]) == 14  # responses and results of seven splits
    assert results[1] == results[2]
    again = home.start("evaluate", "again", *words)
    again.finish()
    assert "opening the engine" not in again.stdout()


def test_a_stage_measures_benchmarks_at_its_validations(home: Home) -> None:
    home.start("grpo", "validated").finish()
    lines = (home.stage("grpo", "validated") / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])["metrics"]
    assert {"val/mathvision:test", "val/hallusionbench:all"} <= set(metrics)
    assert 0 <= metrics["val/mathvision:test"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluate.benchmark.names=mathvsta"], "did you mean 'mathvista'"),
        (["--evaluate.benchmark.names=mathvista", "--evaluate.benchmark.data=/nowhere/x"],
         "no file or folder /nowhere/x"),
        (["--evaluate.benchmark.names=emma", "--evaluate.benchmark.settings=quick"],
         "there is no setting 'quick'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_before_the_engine_opens(
    home: Home, words: list[str], message: str
) -> None:
    command = home.start("evaluate", "mistake", *words)
    assert message in command.refusal()
    assert "opening the engine" not in command.stdout()


@pytest.fixture(scope="module")
def judge(home: Home) -> Iterator[str]:
    """A real endpoint: ``ovlt serve`` on a model that ends its replies before their limit."""
    say_by_chain(tiny_folder(home.folder / "judge"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--name", "judge", "--port", str(port), "--max-tokens", "2048"]
    command = [sys.executable, "-m", "ovlt", "serve", str(home.folder / "judge"), *words]
    with (home.folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--", "--max-num-seqs=4"],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while not answers(f"http://127.0.0.1:{port}/v1/models"):
            text = (home.folder / "serve.log").read_text()[-3000:]
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 - our own, http
            return reply.status == 200
    except OSError:
        return False


def test_with_a_real_judge_and_a_kill_half_way_the_files_are_the_same(
    home: Home, judge: str
) -> None:
    def words(out: Path) -> list[str]:
        return [
            "--evaluate.benchmark.names=mathvista",
            f"--evaluate.benchmark.judge.url={judge}",
            f"--evaluate.benchmark.out={out}",
        ]

    whole, killed = home.folder / "whole", home.folder / "killed"
    home.start("evaluate", "whole", *words(whole)).finish()
    victim = home.start("evaluate", "killed", *words(killed))
    responses = killed / "mathvista-testmini/official/responses.rank0.jsonl"
    victim.kill_when(lambda: responses.is_file() and responses.read_bytes().count(b"\n") >= 2)
    assert not (killed / "mathvista-testmini/official/result.json").exists()
    home.start("evaluate", "killed", *words(killed)).finish()
    folder = whole / "mathvista-testmini/official"
    for name in ("responses.jsonl", "result.jsonl", "result.json", "result.md"):
        other = killed / "mathvista-testmini/official" / name
        assert (folder / name).read_bytes() == other.read_bytes(), name
    head = json.loads((folder / "result.json").read_text())
    assert head["judge"] == "judge"
    assert head["unjudged"] == 0
    assert 0 < head["decided by"]["judge"] == len((folder / "judge.jsonl").read_text().splitlines())
    for style in ("openvlthinker", "vlmevalkit"):
        again = [
            f"--evaluate.benchmark.restyle={folder}",
            f"--evaluate.benchmark.style={style}",
            f"--evaluate.benchmark.judge.url={judge}",
        ]
        command = home.start("evaluate", f"by-{style}", *again)
        command.finish()
        assert f"by {style}" in command.stdout()
