"""The plan of a cycle: every stage once, each by its own recipe, and hours that add up."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.planned import P7, V1, V2, run_of, stage_of

from ovlt.model.sizes import decoder_flops, head_flops, parameters
from ovlt.plan.command import main
from ovlt.plan.distill import phase_seconds, planned_phases, question_count
from ovlt.plan.engine import GIB, engine_seconds
from ovlt.plan.memory import memory
from ovlt.plan.run import Run
from ovlt.plan.seconds import seconds_per_step
from ovlt.plan.stages import planned_stages, stage_seconds

QWQ = 32_763_876_352


def test_stages_with_the_same_plan_are_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_each_stage_is_planned_with_its_own_keys() -> None:
    run = run_of(V2, "h100x8")
    medium, hard = stage_of(run, "grpo1-medium"), stage_of(run, "grpo1-hard")
    assert (medium.steps, hard.steps) == (25, 165)
    assert (medium.run.trainable, hard.run.trainable) == (P7 - parameters(run.config).tower, P7)
    updates = [memory(stage.run, "grpo").moments["update, in a block"] for stage in (medium, hard)]
    assert ["activations, tower" in items for items in updates] == [False, True]
    seconds = [seconds_per_step(stage.run, "grpo")["update"] for stage in (medium, hard)]
    assert seconds[0] < seconds[1]


def test_the_teacher_is_planned_with_its_own_sizes() -> None:
    captions, answers = planned_phases(stage_of(run_of(V2, "h100x8"), "distill1").run)
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
    (self_answers,) = planned_phases(stage_of(run_of(V2, "h100x8"), "distill2").run)
    assert (self_answers.engines, self_answers.work.gpus, self_answers.work.images) == (8, 1, 1.0)
    assert self_answers.work.weights == 2 * P7
    assert (self_answers.work.n, self_answers.work.longest) == (4, 2048)
    # version 1: another captioner, and a teacher that one GPU holds
    captions, answers = planned_phases(stage_of(run_of(V1, "h100x8"), "distill1").run)
    assert (captions.engines, captions.work.weights) == (8, 2 * 3_754_622_976)
    assert (answers.engines, answers.work.weights) == (8, 2 * 14_770_033_664)


def test_several_gpus_hold_a_key_value_head_rather_than_divide_it() -> None:
    (_, answers) = planned_phases(stage_of(run_of(V2, "h100x8"), "distill1").run)
    wide = replace(answers.work, gpus=40)
    assert wide.kv_bytes == replace(answers.work, gpus=8).kv_bytes == 128 * 2 * 64 * 2


def test_seconds_of_a_spread_teacher_by_hand() -> None:
    run = stage_of(run_of(V2, "h100x8"), "distill1").run
    _, answers = planned_phases(run)
    # 5 questions: 20 answers of 800 tokens at once, then a tail up to the longest
    work, gpu = replace(answers.work, prompts=5), run.node.gpu
    rate, p = gpu.bandwidth * 0.6, parameters(work.config)
    weights = 2 * (p.decoder + p.head) / 4 / rate
    wire = 2 * 64 * 5120 * 2 * (2 * 3 / 4) / (450e9 * 0.7)  # a token, over a ring of four
    step = 0.003 + 2 * 64 * 2e-5
    prefill = decoder_flops(work.config, 350) + head_flops(work.config, 1)
    expected = 5 * (prefill / (4 * gpu.flops * 0.4) + 350 * wire)
    expected += 800 * (weights + 20 * (350 + 400) * work.kv_bytes / rate + 20 * wire + step)
    expected += (8192 - 800) * (weights + wire + step)
    assert engine_seconds(work, gpu, run.assumed) == pytest.approx(expected)


def test_every_batch_of_a_distillation_ends_with_its_longest_answer() -> None:
    """Larger shards take less time; fewer engines take more."""
    run = run_of(V2, "h100x8")

    def seconds(*settings: tuple[str, object]) -> float:
        stage = stage_of(run, "distill1", *settings)
        return phase_seconds(stage.run, planned_phases(stage.run)[-1])

    assert seconds(("distill.shard", 256)) > 1.2 * seconds()
    assert seconds(("distill.questions", 3500)) < 0.6 * seconds()
    assert seconds(("distill.engine.tensor_parallel", 2)) > seconds()
    one = seconds(("distill.questions", 1024))
    assert seconds(("distill.questions", 3072)) == pytest.approx(3 * one)


def sft_steps(run: Run) -> list[int]:
    """Return the steps of every SFT stage."""
    return [stage.steps for stage in planned_stages(run) if stage.table == "sft"]


def test_rows_of_sft_follow_from_the_questions_of_its_traces(tmp_path: Path) -> None:
    assert sft_steps(run_of(V2, "h100x8")) == [math.ceil(7000 * 0.42 / 32)] * 3
    fewer = run_of(V2, "h100x8", "--distill.questions=100", "--assume.kept_share=0.5")
    assert sft_steps(fewer) == [2] * 3
    given = run_of(V2, "h100x8", "--assume.sft_rows=3000")
    assert sft_steps(given) == [94] * 3
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("{}\n" * 641)
    from_file = run_of(V2, "h100x8", f"--distill.data={seeds}", "--assume.kept_share=1")
    assert question_count(stage_of(from_file, "distill1").run) == 641
    assert stage_of(from_file, "sft1").steps == 21
    # version 1 says how many rows of iterations 2 and 3 are used
    assert sft_steps(run_of(V1, "h100x8"))[1:] == [157, 157]


def test_the_hours_of_a_cycle_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    words = [V2, "--hardware=h200x8"]
    assert main(words) == 0
    out = capsys.readouterr().out.partition("[cycle]\n")[2].partition("\n\n")[0]
    rows = {line[:24].strip(): line[24:].split() for line in out.splitlines()}
    assert list(rows)[1:-1] == [
        "base answers", "distill", "sft", "grpo medium", "grpo hard", "all",
    ]  # fmt: skip
    stages = planned_stages(run_of(V2, "h200x8"))
    hours = sum(sum(stage_seconds(stage).values()) for stage in stages) / 3600
    assert float(rows["all"][3]) == pytest.approx(hours, abs=0.006)
    for i in range(3):
        of_iteration = [stage for stage in stages if stage.iteration == i + 1]
        expected = sum(sum(stage_seconds(stage).values()) for stage in of_iteration) / 3600
        assert float(rows["all"][i]) == pytest.approx(expected, abs=0.006)
    days = re.search(r"days to finish on h200x8: ([\d.]+)", out)
    assert days is not None
    assert float(days[1]) == pytest.approx(hours / 24, abs=0.006)
    # beside the hours that the authors report
    assert rows["grpo medium"][4:] == ["2.01", "(8", "x", "H100)"]
    assert rows["grpo hard"][4] == "4.57"
    assert rows["sft"][4] == "0.06"
    assert rows["distill"][4] == "8"


def test_unknown_hours_are_not_summed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([V2, "--distill.questions=0"]) == 0
    out = capsys.readouterr().out
    assert "--assume.questions=N" in out
    assert "days to finish on h100x8: unknown" in out
    table = out.partition("[cycle]")[2]
    assert re.search(r"^  sft +\? +\? +\? +\?", table, re.MULTILINE)
    assert re.search(r"^  grpo medium +[\d.]+", table, re.MULTILINE)
    assert main([V2, "--distill.questions=0", "--assume.questions=7000"]) == 0
    assert "unknown" not in capsys.readouterr().out
