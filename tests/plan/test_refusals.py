"""What cannot fit is refused, with a change that makes it fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.planned import V1, V2, run_of, stage_of

from ovlt.plan.command import SIZES, main
from ovlt.plan.engine import GIB
from ovlt.plan.fit import changed, distinct, problems, share_range
from ovlt.plan.fit_distill import distill_lack, distill_mends
from ovlt.plan.memory import memory
from ovlt.plan.stages import parts

OPTION = re.compile(r"--[a-z_.]+=[^\s,)]+")


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ([V1, "--hardware=h100x8", "--model.activation_checkpointing=false"], "checkpointing=true"),
        ([V1, "--hardware=h100x4"], "--grpo.token_budget="),
        ([V2, "--hardware=h100x8", "--engine.gpu_memory=0.8"], "gpu_memory=0.7"),
        ([V2, "--hardware=h100x8", "--engine.gpu_memory=0.1"], "gpu_memory=0.2"),
        ([V1, "--hardware=a100-40x8"], "--hardware=h100x8"),
        ([V1, "--hardware=h100x1"], "--hardware=h100x"),
        ([V1, "--hardware=h200x1"], "--hardware=h200x2"),
        ([V2, "--hardware=h200x8", "--sft.token_budget=500"], "--sft.token_budget=1024"),
        (
            [V2, "--hardware=h200x8", "--grpo.rollout.max_prompt_tokens=300"],
            "--grpo.rollout.max_prompt_tokens=424",
        ),
        (
            [V2, "--hardware=l40sx2", f"--sizes={SIZES / 'qwen2_5_vl_3b.json'}",
             "--model.activation_checkpointing=false", "--model.reshard=false"],
            "--hardware=l40sx",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_refusal_names_the_change_that_makes_it_fit(
    words: list[str], mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    out, err = capsys.readouterr()
    sentences = err.splitlines()
    assert all(line.startswith("ovlt plan: ") for line in sentences)
    assert mend in err
    if "update needs" in err:
        assert "TOO MUCH" in out
    mends = [option for line in sentences for option in OPTION.findall(line)]
    keys = {option.split("=")[0] for option in mends}
    assert main([*(w for w in words if w.split("=")[0] not in keys), *mends]) == 0


def test_what_no_known_node_holds_is_said() -> None:
    run = run_of(V1, "h200x8", "--assume.reserve_gib=150")
    (first, *_) = problems(run)
    assert "take a smaller model" in first


def test_stages_that_need_the_same_are_refused_once() -> None:
    run = run_of(V2, "a100-40x8")
    assert [part.name for part in distinct(run)] == [
        "base_answers", "distill1", "sft1", "grpo1-medium", "grpo1-hard", "distill2",
    ]  # fmt: skip
    sentences = problems(run)
    assert len(sentences) == len(set(sentences)) == 3
    # the hard part trains the tower and needs most; one node holds all of them
    assert [line.split(":")[0] for line in sentences[:2]] == ["grpo1-hard", "grpo1-medium"]
    assert {line.split(": ")[-1] for line in sentences} == {"take --hardware=h100x8"}


def test_a_mend_counts_only_where_the_iteration_leaves_the_key_to_the_recipe(
    tmp_path: Path,
) -> None:
    """A key under [[cycle.iterations]] hides that of the command line, so it is not offered."""
    text = Path(V1).read_text().replace(
        'grpo = [{ data = "data/openvlthinker-v1/grpo3.parquet" }]',
        "grpo = [{ token_budget = 16384 }]",
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(text)
    (first, *_) = problems(run_of(V1, "h100x4"))
    assert first.endswith("set --grpo.token_budget=10240")
    (first, *others) = problems(run_of(str(tmp_path / "mine.toml"), "h100x4"))
    assert "set --grpo.token_budget" not in first
    assert any(line.startswith("grpo3: the update needs 81.7 GiB") for line in others)
    (node,) = {line.partition("take --hardware=")[2] for line in (first, *others)}
    assert problems(run_of(str(tmp_path / "mine.toml"), *node.split())) == []


def test_the_share_of_the_engine_has_two_ends() -> None:
    run = run_of(V2, "h100x8")
    trained = [part for part in parts(run) if part.trains]
    low, high = share_range(trained)
    hard = stage_of(run, "grpo1-hard")  # with a trained tower the least room
    for share, fits in ((low, True), (high, True), (low - 0.01, False), (high + 0.01, False)):
        held = memory(changed(hard.run, ("engine.gpu_memory", share)), "grpo")
        room = run.node.gpu.memory_gib * GIB
        whole = held.kv_tokens >= 6144 + 2048
        beside = max(held.total(m) for m in ("sampling", "weight sync")) <= room
        assert (whole and beside) == fits


# --- engines of a distillation -----------------------------------------------------------------
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
    run = changed(run_of(V2, "h100x8", "--distill.engine.gpu_memory=0.6"), *settings)
    found = [line for line in problems(run) if line.startswith("distill1: ")]
    assert sentence in found[0]
    mends = dict(option.split("=") for line in problems(run) for option in OPTION.findall(line))
    assert mends["--distill.engine.tensor_parallel"] == str(gpus)
    mended = [(key.removeprefix("--"), int(value)) for key, value in mends.items()]
    assert problems(changed(run, *mended)) == []


def test_heads_are_not_divided(tmp_path: Path) -> None:
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


def test_a_share_too_small_for_a_teacher_is_raised() -> None:
    run = run_of(V1, "h100x8", "--distill.engine.gpu_memory=0.4")
    (sentence,) = problems(run)  # 14B: 27.5 + 4 + 14,336 x 192 KiB = 34.1 GiB of 31.6
    assert "DeepSeek-R1-Distill-Qwen-14B needs 34.1 GiB" in sentence
    assert sentence.endswith("set --distill.engine.tensor_parallel=2")
    one = run_of(V1, "h100x1", "--distill.engine.gpu_memory=0.4", "--assume.reserve_gib=0")
    assert "34.1 GiB" in distill_lack(stage_of(one, "distill1"))
    raised = next(distill_mends(stage_of(one, "distill1")))
    assert raised == [("distill.engine.gpu_memory", 0.44)]
    assert distill_lack(stage_of(one, "distill1", *raised)) == ""
