"""``ovlt plan``: what it prints, and its answer to mistakes."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.planned import V1, V2

from ovlt.config.load import REPOSITORY
from ovlt.plan.assumed import Assumptions
from ovlt.plan.command import main
from ovlt.system.hardware import GPUS

PLAIN = """
[model]
path = "models/Qwen2.5-VL-7B-Instruct"
freeze_vision = true
activation_checkpointing = true
[sft]
data = "mine/sft.jsonl"
[grpo]
data = "mine/train.jsonl"
"""


def plain(folder: Path, text: str = PLAIN) -> str:
    """Write a recipe without iterations; return its path."""
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


@pytest.mark.parametrize("recipe", [V1, V2])
def test_the_published_recipes_fit_their_node(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([recipe, "--hardware", "h100x8"]) == 0
    out = capsys.readouterr().out
    assert "sizes: recipes/models/qwen2_5_vl_7b.json" in out
    assert "= 8,292.2" in out
    assert "not measured" in out
    assert "TOO MUCH" not in out
    assert "?" not in out


def test_a_recipe_without_iterations_is_planned_by_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([plain(tmp_path), "--assume.sft_rows=3000"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^\[(.*)\]$", out, re.MULTILINE) == ["sft", "grpo"]
    assert out.count("days") == 2
    totals = [line for line in out.splitlines() if line.startswith("  total ")]
    assert [len(line.split()) for line in totals] == [3, 5]


def test_steps_follow_from_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = plain(tmp_path)
    assert main([mine]) == 0
    assert "--assume.sft_rows=N" in capsys.readouterr().out
    assert main([mine, "--assume.sft_rows=3000"]) == 0
    assert "  94 steps: " in capsys.readouterr().out
    (tmp_path / "sft.jsonl").write_text('{"messages": []}\n' * 65)
    assert main([mine, f"--sft.data={tmp_path}/sft.jsonl"]) == 0
    assert "  3 steps: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hardware=h300x8"], "unknown hardware 'h300x8'"),
        (["--hardware=h100x9"], "1 to 8"),
        (["--assume.respons_tokens=3"], "did you mean 'response_tokens'?"),
        (["--assume.response_tokens=many"], "is not a whole number"),
        (["--assume.decode_efficiency=0"], "above 0"),
        (["--assume.reserve_gib=nan"], "of at least 0"),
        (["--model.path=models/Llama-8B"], "--sizes=FILE"),
        (["--sizes=nowhere.json"], "cannot be read"),
        (["--grpo.steqs=3"], "did you mean"),
        (["--engine.backend=transformers"], "add --engine.backend=vllm"),
        (["--distill.teacher=models/Llama-70B"], "distill.teacher='models/Llama-70B' holds no"),
        (["--distill.captioner=models/Llava"], "put its config.json into that folder"),
        (["--distill.teacher="], "nobody to learn from"),
        (["nowhere.toml"], "no recipe at nowhere.toml"),
    ],
)
def test_mistakes_end_in_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([V2, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


def test_a_recipe_without_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([plain(tmp_path, PLAIN.split("[sft]")[0])]) == 2
    assert "nothing to do" in capsys.readouterr().err


def test_recipes_are_laid_over_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = plain(tmp_path, "[grpo]\nsteps = 7\n[model]\nfreeze_vision = true\n")
    assert main([V1, mine]) == 0
    out = capsys.readouterr().out
    assert out.count("  7 steps: ") == 1  # the same text for all three GRPO stages
    assert "[grpo1, grpo2, grpo3]" in out
    assert ", the tower frozen" in out
    assert "19 (4 x H100)" in out  # V1 is compared with its published hours under any other recipe
    assert main([mine, V1]) == 0
    assert "  7 steps: " not in capsys.readouterr().out  # V1 says grpo.steps itself


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ovlt plan [RECIPE.toml ...]")


@pytest.mark.parametrize("words", [["ovlt", "plan"], ["ovlt.plan"]], ids=" ".join)
def test_both_entries_plan_and_load_nothing_heavy(words: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, V2],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "days to finish on h100x8" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_chip_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    for chip in GPUS:
        assert main([V2, f"--hardware={chip}x8"]) in (0, 1)
        totals = re.findall(r"sum ([\d.]+)", capsys.readouterr().out)
        assert len(totals) == 3  # SFT, and GRPO with and without a trained tower
        assert all(math.isfinite(float(value)) for value in totals)


def test_assumptions_are_printed_and_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([V2]) == 0
    before = capsys.readouterr().out
    assert all(f"{name}=" in before for name in vars(Assumptions()))
    assert main([V2, "--assume.response_tokens=800"]) == 0
    after = capsys.readouterr().out
    assert "response_tokens=800" in after
    assert re.findall(r"sum ([\d.]+)", before)[1] != re.findall(r"sum ([\d.]+)", after)[1]
