"""``python -m ovlt.plan``: what it prints, and its answer to mistakes."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
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
    """A recipe without iterations."""
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
        (["--assume.response_tokens=many"], "is no int"),
        (["--assume.decode_efficiency=0"], "above 0"),
        (["--assume.reserve_gib=nan"], "above 0"),
        (["--model.path=models/Llama-8B"], "--sizes=FILE"),
        (["--sizes=nowhere.json"], "cannot be read"),
        (["--grpo.steqs=3"], "did you mean"),
        (["--engine.backend=transformers"], "engine=vllm"),
        (["--distill.teacher=models/Llama-70B"], "distill.teacher='models/Llama-70B' holds no"),
        (["--distill.captioner=models/Llava"], "put its config.json into that folder"),
        (["--distill.teacher="], "nobody to learn from"),
        ([V1], "more than one recipe"),
    ],
)
def test_mistakes_end_in_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([V2, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


def test_a_recipe_without_data_is_nothing_to_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([plain(tmp_path, PLAIN.split("[sft]")[0])]) == 2
    assert "nothing to do" in capsys.readouterr().err


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ovlt.plan import main; assert main(sys.argv[1:]) == 0;"
        "print(sorted({'torch', 'numpy', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, V2], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_chip_is_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    for chip in GPUS:
        assert main([V2, f"--hardware={chip}x8"]) in (0, 1)
        totals = re.findall(r"sum ([\d.]+)", capsys.readouterr().out)
        assert len(totals) == 3  # SFT, and GRPO with and without a trained tower
        assert all(math.isfinite(float(value)) for value in totals)


def test_assumptions_are_printed_and_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    said: Callable[[], str] = lambda: capsys.readouterr().out  # noqa: E731
    assert main([V2]) == 0
    before = said()
    assert all(f"{name}=" in before for name in vars(Assumptions()))
    assert main([V2, "--assume.response_tokens=800"]) == 0
    after = said()
    assert "response_tokens=800" in after
    assert re.findall(r"sum ([\d.]+)", before)[1] != re.findall(r"sum ([\d.]+)", after)[1]
