"""Runs as users start, break off, change and resume them, end to end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.chain import say_by_chain, write_questions
from helpers.commands import Server
from helpers.folders import copy_of, edit_json, edit_weights
from helpers.home import Home
from helpers.tiny import tiny_folder

from ovlt.run.record import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

RECIPE = """
[run]
device = "cpu"
tensorboard = false
resume = "auto"
[model]
path = "{home}/model"
compute_dtype = "float32"
[data]
workers = 1
[sft]
data = "{home}/traces.jsonl"
steps = 2
batch_samples = 2
token_budget = 400
save_every = 1
[grpo]
data = "{home}/questions.jsonl"
reference = "{home}/reference"
steps = 1
prompts_per_step = 2
updates_per_rollout = 1
token_budget = 300
eval_every = 0
[grpo.rollout]
n = 2
max_prompt_tokens = 160
max_response_tokens = 4
[engine]
backend = "transformers"
kv_cache_gib = 0.05
[reward]
function = "{home}/mine.py:f"
workers = 1
[evaluate]
max_prompt_tokens = 160
max_response_tokens = 24
n = 2
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Home:
    folder = tmp_path_factory.mktemp("runs")
    tiny_folder(folder / "model", initializer_range=0.2)
    tiny_folder(folder / "reference", initializer_range=0.2, seed=1)
    say_by_chain(tiny_folder(folder / "chain"))
    write_questions(folder / "questions.jsonl", 6)
    write_questions(folder / "held.jsonl", 5)
    talk = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3"}]
    (folder / "traces.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 4)
    (folder / "mine.py").write_text(
        "from ovlt.reward import RewardOutput\n"
        "def f(x):\n    return RewardOutput(float(sum(map(ord, x.response)) % 2))\n"
    )
    return Home(folder, RECIPE, server)


def refusal(home: Home, command: str, run: str, *overrides: str) -> str:
    return home.start(command, run, *overrides).refusal()


def changed(path: Path, change: Callable[[str], str]) -> Callable[[], object]:
    """Change a file; return what puts it back."""
    before = path.read_text()
    path.write_text(change(before))
    return lambda: path.write_text(before)


# --- E: a run is its contents -------------------------------------------------------------------


def test_sft_goes_on_with_its_own_rows_only(home: Home) -> None:
    home.start("sft", "rows", "--sft.steps=1").finish()
    rows = home.folder / "traces.jsonl"
    changes: list[Callable[[str], str]] = [
        lambda text: text + text.splitlines()[0] + "\n",
        lambda text: "".join(line + "\n" for line in text.splitlines()[:2]),
        lambda text: text.replace("3", "4", 1),
    ]
    for change in changes:
        back = changed(rows, change)
        said = refusal(home, "sft", "rows", "--sft.steps=2")
        assert "rows of sft.data" in said
        assert "run.accept_changes" in said
        back()
    back = changed(rows, changes[0])
    home.start("sft", "rows", "--sft.steps=2", "--run.accept_changes=true").finish()
    home.start("sft", "rows", "--sft.steps=2").finish()  # these are its contents now
    back()
    moved = home.folder / "elsewhere.jsonl"
    moved.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")
    longer = ["--sft.steps=3", f"--sft.data={moved}"]
    home.start("sft", "rows", *longer, "--sft.token_budget=300", "--sft.save_every=0").finish()
    assert "holds a run of 3 steps" in refusal(home, "sft", "rows", *longer, "--sft.steps=1")
    assert [line["step"] for line in read_metrics(home.stage("sft", "rows"))] == [1, 2, 3]


def test_grpo_goes_on_with_its_own_reward_reference_and_template_only(home: Home) -> None:
    home.start("grpo", "reward").finish()
    reward = home.folder / "mine.py"
    back = changed(reward, lambda text: text.replace("% 2", "% 3"))
    assert "reward.function" in refusal(home, "grpo", "reward", "--grpo.steps=2")
    back()
    weights = (home.folder / "reference" / "model.safetensors").read_bytes()
    edit_weights(home.folder / "reference", lambda t: next(iter(t.values())).add_(0.01))
    assert "reference: weights" in refusal(home, "grpo", "reward", "--grpo.steps=2")
    (home.folder / "reference" / "model.safetensors").write_bytes(weights)
    template = home.folder / "model" / "chat_template.jinja"
    back = changed(template, lambda text: text.replace("assistant", "robot"))
    assert "start: chat template" in refusal(home, "grpo", "reward", "--grpo.steps=2")
    back()
    home.start("grpo", "reward", "--grpo.steps=2").finish()


# --- R2, R1: a failed start, and what is looked at first ----------------------------------------


def test_a_failed_start_leaves_nothing_that_blocks_the_next(home: Home) -> None:
    wrong, held = f"{home.folder}/typo.jsonl", f"--data.held_out={home.folder}/held.jsonl"
    assert "typo.jsonl" in refusal(home, "sft", "failed", f"--sft.data={wrong}")
    assert "typo.jsonl" in refusal(home, "sft", "failed", f"--data.held_out={wrong}")
    assert not (home.stage("sft", "failed") / "recipe.json").exists()
    home.start("sft", "failed", held, "--run.seed=4", "--evaluate.limit=1").finish()
    # and what it is measured by may change afterwards
    validation = [f"--data.validation={home.folder}/held.jsonl", "--sft.eval_every=1"]
    more = ["--sft.steps=3", "--evaluate.limit=2", "--evaluate.n=1", "--data.held_out="]
    home.start("sft", "failed", "--run.seed=4", *validation, *more).finish()
    last = read_metrics(home.stage("sft", "failed"))[-1]
    assert "val/greedy" in last["metrics"]


def test_everything_is_looked_at_before_the_first_step(home: Home) -> None:
    held = f"--data.held_out={home.folder}/held.jsonl"
    validate = ["--sft.eval_every=1", f"--data.validation={home.folder}/questions.jsonl"]
    mistakes: list[tuple[str, list[str], str]] = [
        ("sft", ["--data.held_out=nowhere.jsonl"], "nowhere.jsonl"),
        ("sft", ["--sft.eval_every=1", "--data.validation=gone.jsonl"], "gone.jsonl"),
        ("sft", ["--sft.eval_every=1"], "data.validation names no file"),
        ("sft", [f"--data.held_out={home.folder}/traces.jsonl"], "traces.jsonl"),
        ("sft", [held, "--evaluate.max_response_tokens=9000"], "takes 4096 tokens"),
        ("sft", [held, "--evaluate.top_p=0.5"], "top_p = 1"),
        ("sft", [*validate, "--reward.verdict=exakt"], "did you mean 'exact'"),
        ("sft", ["--model.path="], "model.path is not set"),
        ("grpo", ["--grpo.reference=models/none"], "models/none"),
        ("grpo", [held, "--evaluate.max_response_tokens=9000"], "takes 4096 tokens"),
        ("grpo", [f"--grpo.reference={home.folder}/held.jsonl"], "no model folder"),
        ("evaluate", ["--evaluate.data=none.jsonl"], "none.jsonl"),
    ]
    started = [  # side by side
        (home.start(command, f"looked{i}", *overrides), words)
        for i, (command, overrides, words) in enumerate(mistakes)
    ]
    for command, words in started:
        said = command.refusal()
        assert words in said, said
    for i, (stage, _, _) in enumerate(mistakes):
        folder = home.stage(stage, f"looked{i}")
        assert not folder.is_dir() or [path.name for path in folder.iterdir()] == [".lock"]


def test_one_live_run_per_folder(home: Home) -> None:
    first = home.start("sft", "twice", "--sft.steps=90000", "--sft.save_every=0")
    stage = home.stage("sft", "twice")
    lock = stage / ".lock"
    while not (stage / "metrics.jsonl").is_file():
        assert first.running(), first.stderr()
    said = refusal(home, "sft", "twice", "--sft.steps=90000", "--sft.save_every=0")
    assert f"process {first.pids[0]} on {os.uname().nodename}" in said
    first.kill()
    assert lock.is_file()
    home.start("sft", "twice", "--sft.steps=1", "--sft.save_every=0").finish()


# --- G: lengths, image counts and ends of turns come from one place -----------------------------


def evaluation(home: Home, stage: str, run: str) -> dict[str, Any]:
    return json.loads((home.stage(stage, run) / "evaluation.json").read_text())


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_ends_and_special_tags_are_the_templates(home: Home, engine: str) -> None:
    """T1 and T2: the same weights, with another eos_token, and tags that are special tokens."""
    folder = home.folder / f"odd-{engine}"
    copy_of(home.folder / "chain", folder)
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"))

    def mark(file: dict[str, Any]) -> None:
        for token in file["added_tokens"]:
            token["special"] = True

    edit_json(folder / "tokenizer.json", mark)
    argv = ["--engine.backend=" + engine, f"--data.held_out={home.folder}/held.jsonl"]
    argv += ["--reward.function=answer", "--evaluate.n=8"]
    figures = []
    for model in (home.folder / "chain", folder):
        name = f"{model.name}-{engine}-ends"
        home.start("evaluate", name, f"--evaluate.model={model}", *argv).finish()
        figures.append(evaluation(home, "evaluate", name))
    plain, odd = figures
    assert plain["sampled"]["accuracy"] > 0
    assert plain["response_tokens"]["greedy"] < 12
    for key in ("greedy", "sampled", "response_tokens"):
        assert plain[key] == odd[key], key


def test_held_out_answers_are_as_long_within_grpo_as_alone(home: Home) -> None:
    """R6 and R7: the engine of a rollout has room for lengths and images of the evaluation."""
    held = home.folder / "many.jsonl"
    rows = [json.loads(line) for line in (home.folder / "held.jsonl").read_text().splitlines()]
    for row in rows[:2]:
        row["images"] = row["images"] * 9
        row["problem"] = "How many?"
    held.write_text("\n".join(map(json.dumps, rows)))
    argv = ["--engine.backend=vllm", f"--data.held_out={held}", "--grpo.reference="]
    argv += ["--evaluate.max_response_tokens=60", "--reward.function=answer", "--evaluate.n=0"]
    argv += ["--evaluate.max_prompt_tokens=200", "--grpo.rollout.max_prompt_tokens=30"]
    home.start("grpo", "long", *argv).finish()
    model = home.stage("grpo", "long") / "model"
    home.start("evaluate", "long", f"--evaluate.model={model}", *argv).finish()
    within, alone = evaluation(home, "grpo", "long"), evaluation(home, "evaluate", "long")
    assert within["response_tokens"] == alone["response_tokens"]
    assert within["response_tokens"]["greedy"] > 20
