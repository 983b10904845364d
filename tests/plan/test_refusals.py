"""What cannot fit is refused, with a change that makes it fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.planned import V1, V2, run_of, stage_of

from ovlt.plan.command import SIZES, main
from ovlt.plan.engine import GIB
from ovlt.plan.fit import distinct_stages, problems, share_range, with_settings
from ovlt.plan.fit_distill import check_distill, distill_fixes
from ovlt.plan.memory import memory
from ovlt.plan.stages import planned_stages

# Whole gradients on each rank, and little room beside them.
TIGHT = ("--model.reduce_gradients=last", "--assume.reserve_gib=7", "--engine.gpu_memory=0.4")
OPTION = re.compile(r"--[a-z_.]+=[^\s,)]+")


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ([V1, "--hardware=h100x8", "--model.activation_checkpointing=none"], "checkpointing=full"),
        ([V1, "--hardware=h100x4", *TIGHT], "--grpo.token_budget="),
        ([V2, "--hardware=h100x8", "--engine.gpu_memory=0.8"], "gpu_memory=0.7"),
        ([V2, "--hardware=h100x8", "--engine.gpu_memory=0.1"], "gpu_memory=0.2"),
        ([V1, "--hardware=a100-40x8", "--model.reduce_gradients=last"], "--hardware=h100x8"),
        ([V1, "--hardware=h100x1"], "--hardware=h100x"),
        ([V1, "--hardware=h200x1"], "--hardware=h200x2"),
        ([V2, "--hardware=h200x8", "--sft.token_budget=500"], "--sft.token_budget=1024"),
        (
            [V2, "--hardware=h200x8", "--grpo.rollout.max_prompt_tokens=300"],
            "--grpo.rollout.max_prompt_tokens=424",
        ),
        (
            [V2, "--hardware=l40sx2", f"--sizes={SIZES / 'qwen2_5_vl_3b.json'}",
             "--model.activation_checkpointing=none", "--model.reshard=false",
             "--engine.dtype=float32"],
            "--hardware=l40sx",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_refusal_names_the_change_that_makes_it_fit(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    out, err = capsys.readouterr()
    sentences = err.splitlines()
    assert all(line.startswith("ovlt plan: ") for line in sentences)
    assert fix in err
    if "update needs" in err:
        assert "TOO MUCH" in out
    fixes = [option for line in sentences for option in OPTION.findall(line)]
    keys = {option.split("=")[0] for option in fixes}
    assert main([*(w for w in words if w.split("=")[0] not in keys), *fixes]) == 0


def test_a_run_that_no_known_node_holds_is_refused() -> None:
    run = run_of(V1, "h200x8", "--assume.reserve_gib=150")
    (first, *_) = problems(run)
    assert "take a smaller model" in first


def test_stages_that_need_the_same_are_refused_once() -> None:
    run = run_of(V2, "a100-40x8", "--model.reduce_gradients=last")
    assert [stage.name for stage in distinct_stages(run)] == [
        "base_answers", "distill1", "sft1", "grpo1-medium", "grpo1-hard", "distill2",
    ]  # fmt: skip
    sentences = problems(run)
    assert len(sentences) == len(set(sentences)) == 3
    # the hard stage trains the tower and needs most; one node holds all of them
    assert [line.split(":")[0] for line in sentences[:2]] == ["grpo1-hard", "grpo1-medium"]
    assert {line.split(": ")[-1] for line in sentences} == {"take --hardware=h100x8"}


def test_a_fix_counts_only_if_the_iteration_leaves_the_key_to_the_recipe(
    tmp_path: Path,
) -> None:
    """A key under [[cycle.iterations]] hides that of the command line, so it is not offered."""
    text = Path(V1).read_text().replace(
        'grpo = [{ data = "data/openvlthinker-v1/grpo3.parquet" }]',
        "grpo = [{ token_budget = 16384 }]",
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(text)
    (first, *_) = problems(run_of(V1, "h100x4", *TIGHT))
    assert first.endswith("set --grpo.token_budget=10240")
    (first, *others) = problems(run_of(str(tmp_path / "mine.toml"), "h100x4", *TIGHT))
    assert "set --grpo.token_budget" not in first
    assert any(line.startswith("grpo3: the update needs 81.3 GiB") for line in others)
    (node,) = {line.partition("take --hardware=")[2] for line in (first, *others)}
    assert problems(run_of(str(tmp_path / "mine.toml"), *node.split(), *TIGHT)) == []


def test_the_share_of_the_engine_has_a_least_and_a_most() -> None:
    run = run_of(V2, "h100x8")
    trained = [stage for stage in planned_stages(run) if stage.trains]
    low, high = share_range(trained)
    hard = stage_of(run, "grpo1-hard")  # with a trained tower the least room
    for share, fits in ((low, True), (high, True), (low - 0.01, False), (high + 0.01, False)):
        planned = memory(with_settings(hard.run, ("engine.gpu_memory", share)), "grpo")
        room = run.node.gpu.memory_gib * GIB
        whole = planned.kv_tokens >= 6144 + 2048
        beside = max(planned.total(m) for m in ("sampling", "weight sync")) <= room
        assert (whole and beside) == fits


@pytest.mark.parametrize(
    ("settings", "sentence", "gpus"),
    [
        # 61 GiB of weights and a sequence of 14,336 tokens of 256 KiB do not go into 0.6 x 79 GiB
        ([("distill.engine.tensor_parallel", 1)], "QwQ-32B needs 68.5 GiB", 2),
        ([("distill.engine.tensor_parallel", 8)], "heads of models/Qwen2.5-VL-7B-Instruct", 4),
        ([("distill.engine.tensor_parallel", 3)], "does not divide", 4),
        ([("distill.engine.tensor_parallel", 16)], "h100x8 has 8 GPUs", 4),
        ([("distill.engine.tensor_parallel", 1), ("distill.ranks", 9)], "ranks=9", 2),
    ],
)
def test_a_teacher_is_spread_over_gpus_that_hold_it(
    settings: list[tuple[str, object]], sentence: str, gpus: int
) -> None:
    run = with_settings(run_of(V2, "h100x8", "--distill.engine.gpu_memory=0.6"), *settings)
    lines = [line for line in problems(run) if line.startswith("distill1: ")]
    assert sentence in lines[0]
    fixes = dict(option.split("=") for line in problems(run) for option in OPTION.findall(line))
    assert fixes["--distill.engine.tensor_parallel"] == str(gpus)
    fixed = with_settings(run, *((key[2:], int(value)) for key, value in fixes.items()))
    assert problems(fixed) == []


def test_a_spread_that_would_divide_heads_is_refused(tmp_path: Path) -> None:
    sizes = json.loads((SIZES / "qwq_32b.json").read_text())
    sizes |= {"hidden_size": 3840, "num_attention_heads": 30, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (sentence,) = problems(run_of(V2, "h200x8", f"--distill.teacher={tmp_path}"))
    assert f"tensor_parallel=4 does not divide the heads of {tmp_path}" in sentence
    assert sentence.endswith("set --distill.engine.tensor_parallel=2")


def test_a_teacher_whose_context_is_too_short_is_refused() -> None:
    run = run_of(V2, "h100x8", "--distill.max_response_tokens=34817")
    (sentence,) = problems(run)
    assert "models/QwQ-32B takes 40960 tokens" in sentence
    assert sentence.endswith("set --distill.max_response_tokens=34816")


def test_a_teacher_that_exceeds_its_share_gets_more_gpus_or_memory() -> None:
    run = run_of(V1, "h100x8", "--distill.engine.gpu_memory=0.4")
    (sentence,) = problems(run)  # 14B: 27.5 + 4 + 14,336 x 192 KiB = 34.1 GiB of 31.6
    assert "DeepSeek-R1-Distill-Qwen-14B needs 34.1 GiB" in sentence
    assert sentence.endswith("set --distill.engine.tensor_parallel=2")
    one = run_of(V1, "h100x1", "--distill.engine.gpu_memory=0.4", "--assume.reserve_gib=0")
    assert "34.1 GiB" in check_distill(stage_of(one, "distill1"))
    fix = next(distill_fixes(stage_of(one, "distill1")))
    assert fix == [("distill.engine.gpu_memory", 0.44)]
    assert check_distill(stage_of(one, "distill1", *fix)) == ""
