"""The plan of a cycle: every stage once, each by its own recipe, and hours that add up."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.planned import P7, V1, V2, run_of, stage_of

from ovlt.model.qwen2_5_vl_sizes import forward_flops, head_flops, parameters
from ovlt.plan.command import main
from ovlt.plan.distill import phases_of, questions, sampling_seconds
from ovlt.plan.engine import GIB, seconds
from ovlt.plan.memory import memory
from ovlt.plan.seconds import step_seconds
from ovlt.plan.stages import part_seconds, parts

QWQ = 32_763_876_352


def test_stages_that_say_the_same_are_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([V2, "--hardware=h100x8"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^\[(.*)\]$", out, re.MULTILINE) == [
        "base_answers", "distill1", "sft1, sft2, sft3",
        "grpo1-medium, grpo2-medium, grpo3-medium", "grpo1-hard, grpo2-hard, grpo3-hard",
        "distill2, distill3", "cycle",
    ]  # fmt: skip
    assert main([V1, "--hardware=h100x8"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^\[(.*)\]$", out, re.MULTILINE) == [
        "base_answers", "distill1", "sft1", "grpo1, grpo2, grpo3", "distill2, distill3",
        "sft2, sft3", "cycle",
    ]  # fmt: skip


def test_each_part_is_planned_with_its_own_keys() -> None:
    run = run_of(V2, "h100x8")
    medium, hard = stage_of(run, "grpo1-medium"), stage_of(run, "grpo1-hard")
    assert (medium.steps, hard.steps) == (25, 165)
    assert (medium.run.trainable, hard.run.trainable) == (P7 - parameters(run.config).tower, P7)
    held = [memory(part.run, "grpo").moments["update, in a block"] for part in (medium, hard)]
    assert ["activations, tower" in items for items in held] == [False, True]
    slower = [step_seconds(part.run, "grpo")["update"] for part in (medium, hard)]
    assert slower[0] < slower[1]


def test_the_teacher_is_planned_with_its_own_sizes() -> None:
    captions, answers = phases_of(stage_of(run_of(V2, "h100x8"), "distill1").run)
    assert (captions.engines, answers.engines) == (1, 1)  # spread over 4 GPUs: one process
    assert answers.work.weights == 2 * QWQ / 4
    assert captions.work.weights == 2 * P7 / 4
    # two of eight key-value heads on each GPU: 128 wide, key and value, 64 layers, 2 bytes
    assert answers.work.kv_bytes == 2 * 128 * 2 * 64 * 2
    room = 0.9 * 79.0 * GIB - 2 * QWQ / 4 - 4 * GIB
    assert answers.work.kv_tokens == int(room / answers.work.kv_bytes)
    assert (captions.work.images, answers.work.images) == (1.0, 0.0)
    assert (captions.work.n, answers.work.n) == (1, 4)
    assert (captions.work.prompt_tokens, answers.work.prompt_tokens) == (424, 350)
    # later the model answers from the image itself, an engine on each GPU
    (own,) = phases_of(stage_of(run_of(V2, "h100x8"), "distill2").run)
    assert (own.engines, own.work.gpus, own.work.images) == (8, 1, 1.0)
    assert own.work.weights == 2 * P7
    assert (own.work.n, own.work.longest) == (4, 2048)
    # version 1: another captioner, and a teacher that one GPU holds
    captions, answers = phases_of(stage_of(run_of(V1, "h100x8"), "distill1").run)
    assert (captions.engines, captions.work.weights) == (8, 2 * 3_754_622_976)
    assert (answers.engines, answers.work.weights) == (8, 2 * 14_770_033_664)


def test_key_value_heads_are_held_twice_rather_than_divided() -> None:
    (_, answers) = phases_of(stage_of(run_of(V2, "h100x8"), "distill1").run)
    wide = replace(answers.work, gpus=40)
    assert wide.kv_bytes == replace(answers.work, gpus=8).kv_bytes == 128 * 2 * 64 * 2


def test_seconds_of_a_spread_teacher_by_hand() -> None:
    run = stage_of(run_of(V2, "h100x8"), "distill1").run
    _, answers = phases_of(run)
    # 5 questions: 20 answers of 800 tokens at once, then a tail up to the longest
    work, gpu = replace(answers.work, prompts=5), run.node.gpu
    rate, p = gpu.bandwidth * 0.6, parameters(work.config)
    weights = 2 * (p.decoder + p.head) / 4 / rate
    wire = 2 * 64 * 5120 * 2 * (2 * 3 / 4) / (450e9 * 0.7)  # a token, over a ring of four
    step = 0.003 + 2 * 64 * 2e-5
    prefill = forward_flops(work.config, 350, ()) - head_flops(work.config, 349)
    expected = 5 * (prefill / (4 * gpu.flops * 0.4) + 350 * wire)
    expected += 800 * (weights + 20 * (350 + 400) * work.kv_bytes / rate + 20 * wire + step)
    expected += (8192 - 800) * (weights + wire + step)
    assert seconds(work, gpu, run.assumed) == pytest.approx(expected)


def test_every_batch_of_a_distillation_ends_with_its_longest_answer() -> None:
    """So larger shards take less time, and fewer questions, or more GPUs, too."""
    run = run_of(V2, "h100x8")

    def taken(*settings: tuple[str, object]) -> float:
        part = stage_of(run, "distill1", *settings)
        return sampling_seconds(part.run, phases_of(part.run)[-1])

    assert taken(("distill.shard", 256)) > 1.2 * taken()
    assert taken(("distill.questions", 3500)) < 0.6 * taken()
    assert taken(("distill.engine.tensor_parallel", 2)) > taken()
    one = taken(("distill.questions", 1024))
    assert taken(("distill.questions", 3072)) == pytest.approx(3 * one)


def test_rows_of_sft_follow_from_the_questions_of_its_traces(tmp_path: Path) -> None:
    run = run_of(V2, "h100x8")
    assert [p.steps for p in parts(run) if p.table == "sft"] == [math.ceil(7000 * 0.42 / 32)] * 3
    fewer = run_of(V2, "h100x8", "--distill.questions=100", "--assume.kept_share=0.5")
    assert [p.steps for p in parts(fewer) if p.table == "sft"] == [2] * 3
    given = run_of(V2, "h100x8", "--assume.sft_rows=3000")
    assert [p.steps for p in parts(given) if p.table == "sft"] == [94] * 3
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("{}\n" * 641)
    there = run_of(V2, "h100x8", f"--distill.data={seeds}", "--assume.kept_share=1")
    assert questions(stage_of(there, "distill1").run) == 641
    assert stage_of(there, "sft1").steps == 21
    # version 1 says how many rows of iterations 2 and 3 are used
    assert [p.steps for p in parts(run_of(V1, "h100x8")) if p.table == "sft"][1:] == [157, 157]


def test_the_last_table_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    words = [V2, "--hardware=h200x8"]
    assert main(words) == 0
    out = capsys.readouterr().out.partition("[cycle]\n")[2].partition("\n\n")[0]
    rows = {line[:24].strip(): line[24:].split() for line in out.splitlines()}
    assert list(rows)[1:-1] == [
        "base answers", "distill", "sft", "grpo medium", "grpo hard", "all",
    ]  # fmt: skip
    planned = parts(run_of(V2, "h200x8"))
    hours = sum(sum(part_seconds(part).values()) for part in planned) / 3600
    assert float(rows["all"][3]) == pytest.approx(hours, abs=0.006)
    for i in range(3):
        mine = [part for part in planned if part.iteration == i + 1]
        expected = sum(sum(part_seconds(part).values()) for part in mine) / 3600
        assert float(rows["all"][i]) == pytest.approx(expected, abs=0.006)
    days = re.search(r"days to finish on h200x8: ([\d.]+)", out)
    assert days is not None
    assert float(days[1]) == pytest.approx(hours / 24, abs=0.006)
    # beside what the authors took
    assert rows["grpo medium"][4:] == ["2.01", "(8", "x", "H100)"]
    assert rows["grpo hard"][4] == "4.57"
    assert rows["sft"][4] == "0.06"
    assert rows["distill"][4] == "8"


def test_what_is_not_known_is_not_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([V2, "--distill.questions=0"]) == 0
    out = capsys.readouterr().out
    assert "--assume.questions=N" in out
    assert "days to finish on h100x8: unknown" in out
    table = out.partition("[cycle]")[2]
    assert re.search(r"^  sft +\? +\? +\? +\?", table, re.MULTILINE)
    assert re.search(r"^  grpo medium +[\d.]+", table, re.MULTILINE)
    assert main([V2, "--distill.questions=0", "--assume.questions=7000"]) == 0
    assert "unknown" not in capsys.readouterr().out
