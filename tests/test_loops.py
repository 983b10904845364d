"""``ovlt.sft`` and ``ovlt.grpo`` as a user runs them: processes, vLLM, kills, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import REPOSITORY, TIMEOUT_S, Command, Server
from helpers.home import Home
from helpers.tiny import tiny_folder
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ovlt.data.mixture.difficulty import read_pass_rates
from ovlt.data.worlds import synthetic
from ovlt.run.record import read_metrics
from ovlt.train.checkpoint import latest

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

# Random weights never answer right, so the reward is one that random text differs in.
REWARD = """
from ovlt.reward import RewardOutput
def odd(x):
    return RewardOutput(float(sum(map(ord, x.response)) % 2), {"accuracy": 1.0})
def bare(x):
    return RewardOutput(odd(x).score)
def mixed(x):
    return RewardOutput(float(sum(map(ord, x.response + x.question)) % 2))
def flat(x):
    return RewardOutput(1.0)
def errs(x):
    raise KeyError("lost")
def some_err(x):
    import numpy
    if sum(map(ord, x.response)) % 5 == 0:
        raise KeyError("lost")
    return RewardOutput(numpy.float32(odd(x).score), {"accuracy": numpy.bool_(True)})
"""
RECIPE = """
[run]
device = "cpu"
tensorboard = false
folder = "{home}/runs/default"
[model]
path = "{home}/model"
compute_dtype = "float32"
[data]
workers = 1
validation = "{home}/questions.parquet"
validation_questions = 3
[sft]
data = "{home}/traces.parquet"
steps = 5
batch_samples = 6
token_budget = 400
save_every = 2
[sft.optim]
lr = 3e-3
[grpo]
data = "{home}/questions.parquet"
steps = 5
prompts_per_step = 4
updates_per_rollout = 1
token_budget = 300
save_every = 2
eval_every = 0
log_groups = 4
[grpo.optim]
lr = 1e-3
schedule = "cosine"
[grpo.loss]
kl_coef = 0.0
[grpo.rollout]
n = 3
temperature = 0.9
max_prompt_tokens = 160
max_response_tokens = 7
[engine]
max_sequences = 16
kv_cache_gib = 0.05
[reward]
function = "{home}/odd.py:odd"
workers = 1
[evaluate]
max_prompt_tokens = 160
n = 2
limit = 3
max_response_tokens = 5
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Home:
    """A model, questions, traces, a reward and a recipe."""
    folder = tmp_path_factory.mktemp("loops")
    tiny_folder(folder / "model", initializer_range=0.2)
    items = list(synthetic.generate(["shapes"], "train", 12, 5, synthetic.WorldSpec(size=84)))
    synthetic.write_questions(items, folder / "questions.parquet")
    rows = synthetic.trace_rows(items, {"direct": 1.0}, 5)
    synthetic.write_sft(rows, folder / "traces.parquet")
    (folder / "odd.py").write_text(REWARD)
    return Home(folder, RECIPE, server)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model-00001.safetensors")


def figures(folder: Path) -> list[dict[str, Any]]:
    """What was logged of each step, without what the clock has a part in."""
    clock = ("tokens_per_second", "tokens_computed_per_second", "model_gflops_per_second")
    return [
        {"step": line["step"]} | {k: v for k, v in line["metrics"].items() if k not in clock}
        for line in read_metrics(folder)
    ]


def rollouts(folder: Path, step: int) -> list[dict[str, Any]]:
    lines = (folder / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_published_recipe_trains_at_smoke_size(home: Home) -> None:
    """recipes/openvlthinker-v2.toml itself, on two ranks, with our model and data."""
    argv = [str(REPOSITORY / "recipes" / "openvlthinker-v2.toml"), "--smoke"]
    argv += [f"--model.path={home.folder}/model", f"--sft.data={home.folder}/traces.parquet"]
    argv += ["--sft.steps=2", "--sft.eval_every=0", "--data.validation=", "--data.held_out="]
    argv += [f"--run.folder={home.run_folder('published')}", "--run.tensorboard=false"]
    Command(home.server, "ovlt.sft", argv, 2, home.folder / "published").finish()
    (folder,) = home.run_folder("published").glob("*/model")
    before, after = (
        load_file(home.folder / "model" / "model.safetensors"),
        load_file(next(folder.glob("*.safetensors"))),
    )
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    frozen = {name for name in before if "visual" in name}
    assert frozen
    assert not changed & frozen  # the recipe's, not the smoke recipe's
    assert len(changed) > 10


def kill_after_checkpoint(home: Home, command: Command, stage: str, run: str) -> None:
    folder = home.stage(stage, run)
    first = folder / "checkpoints" / "step_000002"
    command.kill_when(lambda: (first / "manifest.json").exists())
    assert not (folder / "model").exists()  # it was killed while it ran
    newest = latest(folder / "checkpoints")
    assert newest is not None
    assert newest.name in ("step_000002", "step_000004")


@pytest.fixture(scope="module")
def finished(home: Home) -> Callable[[str, int], Path]:
    """The stage folder of an uninterrupted run, of a stage on so many ranks."""
    done: dict[tuple[str, int], Path] = {}

    def get(stage: str, ranks: int) -> Path:
        if (stage, ranks) not in done:
            run = f"{stage}-{ranks}"
            profile = ["--run.profile=2"] if run == "sft-1" else []  # changes no result
            whole = home.start(stage, f"{run}-whole", *profile, ranks=ranks)
            if ranks == 1:  # side by side: two processes, as the ranks are
                killed = home.start(stage, f"{run}-killed", ranks=ranks)
                kill_after_checkpoint(home, killed, stage, f"{run}-killed")
            whole.finish()
            if ranks > 1:
                killed = home.start(stage, f"{run}-killed", ranks=ranks)
                kill_after_checkpoint(home, killed, stage, f"{run}-killed")
            done[stage, ranks] = home.stage(stage, f"{run}-whole")
        return done[stage, ranks]

    return get


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_killed_run_resumes_to_bitwise_the_same_weights(
    home: Home, finished: Callable[[str, int], Path], stage: str, ranks: int
) -> None:
    whole = finished(stage, ranks)
    home.start(stage, f"{stage}-{ranks}-killed", "--resume", "auto", ranks=ranks).finish()
    resumed = home.stage(stage, f"{stage}-{ranks}-killed")
    start, want, got = (
        load_file(home.folder / "model" / "model.safetensors"),
        weights(whole),
        weights(resumed),
    )
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert any(not torch.equal(want[name], start[name]) for name in want if "visual" in name)
    assert [line["step"] for line in figures(whole)] == [1, 2, 3, 4, 5]
    assert figures(resumed) == figures(whole)
    assert json.loads((resumed / "stage.json").read_text())["status"] == "done"
    if stage == "grpo":
        for step in range(1, 6):
            assert rollouts(resumed, step) == rollouts(whole, step)


@pytest.mark.parametrize(("family", "stage"), [("qwen3_vl", "grpo"), ("qwen3_5", "sft")])
def test_the_other_families_resume_to_bitwise_the_same_weights(
    home: Home, family: str, stage: str
) -> None:
    model = home.folder / family
    tiny_folder(model, initializer_range=0.2, family=family)
    path, names = f"--model.path={model}", (f"{family}-whole", f"{family}-killed")
    whole, killed = (home.start(stage, name, path) for name in names)
    kill_after_checkpoint(home, killed, stage, names[1])
    whole.finish()
    home.start(stage, names[1], path, "--resume", "auto").finish()
    want, got = (weights(home.stage(stage, name)) for name in names)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    start = load_file(model / "model.safetensors")
    assert any(not torch.equal(want[name], start[name]) for name in want if "visual" in name)
    assert figures(home.stage(stage, names[1])) == figures(home.stage(stage, names[0]))


def test_a_profiled_run_says_where_its_phases_wait(
    finished: Callable[[str, int], Path],
) -> None:
    folder = finished("sft", 1) / "profile"
    lines = (folder / "rank-0.txt").read_text().splitlines()
    phases = [line.split()[0] for line in lines[3 : lines.index("", 3)]]
    assert set(phases) == {"data", "update", "checkpoint", "other", "all"}
    assert any("AdamW" in line for line in lines)
    assert (folder / "rank-0.json.gz").stat().st_size > 10_000


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_one_rank_and_two_ranks_take_the_same_first_step(
    finished: Callable[[str, int], Path], stage: str
) -> None:
    one, two = (figures(finished(stage, ranks))[0] for ranks in (1, 2))
    exact = ["tokens"]
    if stage == "grpo":
        exact += ["reward/mean", "response/tokens_mean", "groups/no_signal_frac"]
        assert 0 < one["reward/mean"] < 1
        texts = [
            [
                [(g["prompt_id"], s["text"], s["reward"], s["advantage"]) for s in g["samples"]]
                for g in rollouts(finished(stage, ranks), 1)
            ]
            for ranks in (1, 2)
        ]
        assert texts[0] == texts[1]
    for name in exact:
        assert one[name] == two[name], name
    for name in ("loss", "grad_norm", "entropy", "lr"):
        assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_weights_that_stay_gathered_learn_the_same(home: Home, frozen: str) -> None:
    freeze = [f"--model.freeze_vision={frozen}", "--sft.steps=2"]
    runs = {
        reshard: home.start(
            "sft", f"{frozen}-{reshard}", f"--model.reshard={reshard}", *freeze, ranks=2
        )
        for reshard in ("true", "false")
    }
    for command in runs.values():
        command.finish()
    freed, kept = (weights(home.stage("sft", f"{frozen}-{reshard}")) for reshard in runs)
    start = load_file(next((home.folder / "model").glob("*.safetensors")))
    assert freed.keys() == kept.keys()
    for name, value in freed.items():
        torch.testing.assert_close(value, kept[name])
        stays = frozen == "true" and "visual" in name
        assert torch.equal(value, start[name]) == stays, name


def test_samples_of_advantage_zero_can_be_left_out_of_the_update(
    home: Home, finished: Callable[[str, int], Path]
) -> None:
    """Same loss and gradient, less work; and a step in which nothing is left does not stop it."""
    skip = "--grpo.skip_zero_advantage=true"
    some = home.start("grpo", "skip", skip)
    none = home.start(
        "grpo", "skip-all", skip, "--grpo.steps=1",
        f"--reward.function={home.folder / 'odd.py'}:flat", ranks=2,
    )  # fmt: skip
    some.finish()
    none.finish()
    kl = home.start("grpo", "skip-kl", skip, "--grpo.loss.kl_coef=0.1", "--grpo.steps=1")
    kl.finish()
    # the first step: later ones start from weights that differ in rounding
    want, got = figures(finished("grpo", 1))[0], figures(home.stage("grpo", "skip"))[0]
    assert 0 < want["groups/no_signal_frac"] < 1
    assert want["update/samples_frac"] == 1
    assert got["update/samples_frac"] == 1 - want["groups/no_signal_frac"]
    packed = [line["pack/fill"] * line["pack/micro_batches"] for line in (got, want)]
    assert packed[0] < 0.9 * packed[1]
    assert got["tokens"] == want["tokens"]
    for name in ("loss", "grad_norm"):
        assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-6), name

    assert figures(home.stage("grpo", "skip-kl"))[0]["update/samples_frac"] == 1
    line = figures(home.stage("grpo", "skip-all"))[0]
    assert line["update/samples_frac"] == line["grad_norm"] == line["loss"] == 0


def test_shared_prompts_and_copies_take_the_same_first_step(
    home: Home, finished: Callable[[str, int], Path]
) -> None:
    home.start("grpo", "copies", "--grpo.share_prompts=false").finish()
    shared, copies = figures(finished("grpo", 1))[0], figures(home.stage("grpo", "copies"))[0]
    assert shared["tokens"] == copies["tokens"] == copies["tokens_computed"]
    assert shared["tokens_computed"] < 0.8 * copies["tokens_computed"]
    assert shared["reward/mean"] == copies["reward/mean"]
    for name in ("loss", "grad_norm", "entropy", "mismatch/kl"):
        assert shared[name] == pytest.approx(copies[name], rel=1e-4, abs=1e-6), name


def test_a_suffix_of_grpo_is_asked_in_its_rollouts(
    home: Home, finished: Callable[[str, int], Path]
) -> None:
    home.start("grpo", "suffix", "--grpo.suffix= Think.", "--grpo.steps=1").finish()

    def prompt_tokens(folder: Path) -> int:
        line = figures(folder)[0]
        return round(line["tokens"] - 12 * line["response/tokens_mean"])

    tokenizer = Tokenizer.from_file(str(home.folder / "model" / "tokenizer.json"))
    more = 12 * len(tokenizer.encode(" Think.").ids)
    plain, asked = finished("grpo", 1), home.stage("grpo", "suffix")
    assert prompt_tokens(asked) == prompt_tokens(plain) + more
    assert rollouts(asked, 1)[0]["question"] == rollouts(plain, 1)[0]["question"]


def test_the_best_model_by_validation_is_kept_through_a_kill(home: Home) -> None:
    own: list[str] = []
    folder, greedy, step = home.folder, {}, 0
    for seed in (1, 2, 3):  # in which run the last model is not the best, versions decide
        own = [
            f"--reward.function={home.folder / 'odd.py'}:mixed",
            "--grpo.keep=best", "--grpo.eval_every=1", "--grpo.optim.schedule=constant",
            "--grpo.optim.lr=2e-3", "--data.validation_questions=12",
            "--grpo.rollout.max_response_tokens=8", f"--run.seed={seed}",
        ]  # fmt: skip
        shutil.rmtree(home.run_folder("best-killed"), ignore_errors=True)
        shutil.rmtree(home.run_folder("best"), ignore_errors=True)
        whole = home.start("grpo", "best", *own)
        killed = home.start("grpo", "best-killed", *own)
        kill_after_checkpoint(home, killed, "grpo", "best-killed")
        whole.finish()
        folder = home.stage("grpo", "best")
        greedy = {line["step"]: line["metrics"]["val/greedy"] for line in read_metrics(folder)}
        step = max(greedy, key=lambda s: (greedy[s], s))
        if step < 5:
            break
    assert step < 5, greedy  # the last one would prove nothing
    record = json.loads((folder / "stage.json").read_text())
    assert record["best"] == {"step": step, "value": greedy[step]}
    assert not (folder / "best").exists()

    last = [*own, "--grpo.keep=last", f"--grpo.steps={step}"]
    home.start("grpo", "best-last", *last).finish()
    home.start("grpo", "best-killed", *own, "--resume", "auto").finish()
    home.start("grpo", "best", *own, "--resume", "auto").finish()  # which has ended already
    want = weights(home.stage("grpo", "best-last"))
    for run in ("best", "best-killed"):
        got = weights(home.stage("grpo", run))
        assert all(torch.equal(want[name], got[name]) for name in want), run


PHASES = ["sync", "data", "rollout", "reward", "exchange", "pack", "old_logp", "ref_logp", "update"]


def test_a_reward_that_errs_stops_the_run_and_one_that_errs_at_times_is_counted(home: Home) -> None:
    slow = ["--engine.backend=transformers", "--grpo.steps=2"]
    function = f"--reward.function={home.folder}/odd.py"
    refused = home.start("grpo", "errs", *slow, f"{function}:errs")
    message = refused.refusal()
    assert "step 1: 12 of 12 gradings failed: error: KeyError: 'lost'" in message
    assert "reward.max_error_frac" in message
    judged = home.start(
        "grpo", "judge-errs", *slow, f"--reward.verdict={home.folder}/odd.py:errs",
        "--grpo.eval_every=1",
    )  # fmt: skip
    assert "evaluation: 6 of 6 gradings failed" in judged.refusal()
    counted = home.start(
        "grpo", "some-err", *slow, f"{function}:some_err", "--reward.max_error_frac=1"
    )
    counted.finish()
    errors = [
        line["metrics"]["reward/errors"] for line in read_metrics(home.stage("grpo", "some-err"))
    ]
    assert len(errors) == 2
    assert counted.stdout().count("gradings failed") == (sum(errors) > 0)


def test_four_updates_per_rollout_with_reference_and_the_slow_engine(home: Home) -> None:
    """Old and reference log-probs, validation, the held-out measurement, and what is logged."""
    home.start(
        "grpo", "reference",
        "--engine.backend=transformers",
        "--grpo.loss.kl_coef=0.05",
        "--grpo.updates_per_rollout=4",
        "--grpo.steps=2",
        "--grpo.eval_every=2",
        "--grpo.log_groups=3",
        "--reward.verdict=answer",
        f"--data.held_out={home.folder / 'questions.parquet'}",
    ).finish()  # fmt: skip
    folder = home.stage("grpo", "reference")
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        values = line["metrics"]
        assert set(PHASES) <= set(line["seconds"])
        assert all(seconds >= 0 for seconds in line["seconds"].values())
        assert "non_finite" not in line
        assert values["ratio/first_dev"] <= 1e-5  # before any update the ratio is 1
        assert values["ratio/max_dev"] > 1e-4  # and after the first it is not
        assert values["mismatch/max_abs"] <= 1e-4
        assert values["mismatch/kl"] <= 1e-6
        assert values["mismatch/probe"] <= 1e-4
        assert values["is/truncated_frac"] == 0
        assert 0 < values["pack/fill"] <= 1
        assert values["pack/micro_batches"] == 4
        assert values["grad_norm"] > 0
        assert values["entropy"] > 0
        assert values["tokens"] > 0
        assert values["reward/timeouts"] == 0
    assert lines[1]["metrics"]["kl_ref"] > lines[0]["metrics"]["kl_ref"] > 0
    assert lines[1]["metrics"]["lr"] < lines[0]["metrics"]["lr"]  # one schedule over 8 updates
    assert {"val/greedy", "val/sampled", "val/tokens_mean"} <= set(lines[1]["metrics"])
    assert "validation" in lines[1]["seconds"]

    groups = rollouts(folder, 1)
    assert len(groups) == 3
    for group in groups:
        assert len(group["samples"]) == 3
        assert sum(s["advantage"] for s in group["samples"]) == pytest.approx(0, abs=1e-5)
        (image,) = group["images"]
        with Image.open(folder / image) as picture:
            assert picture.size == (84, 84)
    held_out = json.loads((folder / "evaluation.json").read_text())
    assert held_out["num_questions"] == 3
    assert held_out["sampled"]["n"] == 2
    # the reward calls every answer right; the verdict, that of another function, none
    assert lines[1]["metrics"]["val/greedy"] == held_out["greedy"]["accuracy"] == 0
    assert any(sample["reward"] for group in groups for sample in group["samples"])
    assert list(read_pass_rates([str(folder / "evaluation.json")]).values()) == [0.0] * 3
    assert latest(folder / "checkpoints") == folder / "checkpoints" / "step_000002"


def assert_one_sentence(code: int, stderr: str, start: str, *words: str) -> None:
    assert code != 0
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith(start)
    for word in words:
        assert word in lines[0]


def test_a_missing_model_is_one_sentence(home: Home) -> None:
    absent = f"{home.folder / 'absent'}"
    process = home.start_process("grpo", "absent", f"--model.path={absent}")
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert_one_sentence(process.returncode, text, "ovlt grpo: ", absent, "--model.path")


def test_other_mistakes_are_one_sentence_too(
    home: Home, finished: Callable[[str, int], Path]
) -> None:
    broken = home.folder / "broken"
    shutil.copytree(home.folder / "model", broken)
    with (broken / "model.safetensors").open("rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 2)
    finished("sft", 1)
    held = f"--data.held_out={home.folder / 'questions.parquet'}"
    mistakes = [
        ("sft", "broken", [f"--model.path={broken}"], "truncated"),
        ("grpo", "no-reward", ["--reward.function=rewards.py:f"], "rewards.py does not exist"),
        ("sft", "no-verdict", ["--reward.verdict=anser", held], "did you mean 'answer'"),
        ("sft", "sft-1-whole", ["--sft.batch_samples=7"], "sft.batch_samples was 6, is 7"),
        ("sft", "sft-1-whole", [], "--resume auto"),
        ("sft", "no-data", [f"--sft.data={home.folder / 'none.parquet'}"], "none.parquet"),
        ("evaluate", "no-model", [f"--evaluate.model={home.folder / 'gone'}"], "gone"),
    ]
    if not torch.cuda.is_available():
        mistakes.append(("sft", "no-gpu", ["--run.device=cuda"], "CUDA"))
        mistakes.append(("grpo", "no-liger", ["--model.liger=on"], "model.liger='on'"))
    for stage, run, overrides, words in mistakes:
        command = home.start(stage, run, *overrides)
        assert_one_sentence(command.wait()[0], command.stderr(), f"ovlt {stage}: ", words)
