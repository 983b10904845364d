"""bench/on_gpu.sh from end to end in a small size, and what it makes of results."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gather
import gpu_tables
import pytest
import table
import torch
from helpers.commands import REPOSITORY, environment
from step import Case, choose
from step_model import group_samples, sized, tiny_folder

from ovlt.model import sizes
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import empty_model
from ovlt.train.pack import collate

GIB = 2**30


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a dry run wrote its results, and what it printed."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    variables = environment() | {"PYTHON": sys.executable, "OVLT_COMMIT": "abcdef"}
    variables.pop("PYTEST_XDIST_WORKER", None)  # within one, pytest-benchmark measures nothing
    command = ["bash", str(REPOSITORY / "bench" / "on_gpu.sh"), "--dry", str(out)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_every_section_of_the_script_runs_and_leaves_few_files(dry: tuple[Path, str]) -> None:
    out, text = dry
    results = json.loads(next(out.glob("*-cpu.json")).read_text())
    log = (out / "log.txt").read_text()
    assert {s["name"]: s["status"] for s in results["sections"]} == dict.fromkeys(
        ("ceilings", "tests", "step", "kernels", "checks", "loop"), 0
    ), log[-3000:]
    assert len(list(out.iterdir())) <= 8
    assert results["about"]["commit"] == "abcdef"
    assert {"torch", "transformers"} <= set(results["about"]["versions"])
    assert results["ceilings"]["product_flops"] > 1e9
    assert all(check["passed"] for check in results["checks"])
    first, second = results["step"]
    assert first["mfu"] > 0
    assert len(first["profile"]["dearest"]) == 25
    assert sum(first["seconds"].values()) == pytest.approx(first["step_s"])
    assert {"tower forward", "decoder forward", "decoder backward"} <= set(first["seconds"])
    assert second["checkpointing"] == "full"
    assert "checks: 7 passed, 0 failed" in text
    made = (out / "table.md").read_text()
    assert "tiny, 400 tokens, auto" in made
    assert "| row_logp smoke bf16 |" in made or "**row_logp smoke bf16**" in made


@pytest.mark.slow
def test_results_of_the_script_take_the_place_of_the_gpu_table(
    dry: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "2026-01-02-gpu.json"
    stored.write_text(next(dry[0].glob("*-cpu.json")).read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Project\n")
    page = tmp_path / "docs" / "kernels.md"
    page.write_text("# K\n<!-- bench-gpu:begin -->\nold\n<!-- bench-gpu:end -->\nend\n")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    later = tmp_path / "later"
    later.mkdir()
    check = {"check": "engine: opens", "passed": False, "error": "no kernel image", "figures": {}}
    (later / "engine-eager.json").write_text(json.dumps({"checks": [check]}))
    loop = {"loop": "grpo", "seconds": {"rollout": 1.5}, "metrics": {"mismatch/kl": 0.0012}}
    (later / "loops.jsonl").write_text(json.dumps(loop) + "\n")
    monkeypatch.setattr(sys, "argv", ["gather.py", str(stored), "--add", str(later)])
    gather.main()
    table.main([str(stored), "--publish", "gpu"])
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# K\n")
    assert text.endswith("end\n")
    for words in ("MFU", "commit abcdef", "| grpo | 1.50 | 0.0012 |", "FAILED: no kernel image"):
        assert words in text, words


def test_a_section_that_wrote_nothing_or_rubbish_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "ceilings.json").write_text("{torn")
    (tmp_path / "step.json").write_text(
        json.dumps({"about": {"date": "d", "commit": "c"}, "cases": [{"case": "7B", "error": "x"}]})
    )
    (tmp_path / "kernels.jsonl").write_text('{"name": "one", "group": "g"}\n{"name": "to')
    (tmp_path / "sections.tsv").write_text("ceilings\t1\t3\ntests\t124\t75\n")
    results = gather.joined(tmp_path)
    assert [b["name"] for b in results["benchmarks"]] == ["one"]
    assert "FAILED tests: see log.txt" in gpu_tables.short(results)
    assert "| 7B |" in gpu_tables.sections(results)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("step"))


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_random_models_have_the_published_sizes(tiny: ModelFolder, size: str) -> None:
    folder = sized(tiny, size)
    model = empty_model(folder.config)
    expected = {"3B": 3_754_622_976, "7B": 8_292_166_656}[size]  # as the model hub counts them
    assert sum(p.numel() for p in model.parameters()) == expected
    assert sizes.parameters(folder.config).total == expected
    assert sized(tiny, size, 5).config.text_config.num_hidden_layers == 5
    assert len(folder.banned) < 450


def test_as_many_layers_are_measured_as_fit_the_chip(tiny: ModelFolder) -> None:
    """An H100 holds a part of 7B and the whole of 3B; what is chosen is within the memory."""
    folder = sized(tiny, "7B")
    samples = group_samples(folder, 16_384, pixels=512 * 512, shortest=200, longest=600)
    weights = [1.0] * len(samples)
    batch = collate(samples, weights, config=folder.config, patchify=folder.patchify)
    assert 14_000 < batch.num_tokens <= 16_384
    layers: dict[tuple[str, int], Any] = {}
    for size in ("3B", "7B"):
        for gib in (75, 135):
            chosen = choose(Case(size), sized(tiny, size), batch, torch.bfloat16, gib * GIB)
            layers[size, gib] = chosen.layers
    assert layers["3B", 75] == layers["3B", 135] == 36
    assert 4 <= layers["7B", 75] < 14 < layers["7B", 135] < 28
    with pytest.raises(torch.OutOfMemoryError):
        choose(Case("7B"), folder, batch, torch.bfloat16, 8 * GIB)


def test_the_script_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    variables = copy.copy(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    command = ["bash", str(REPOSITORY / "bench" / "on_gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--dry" in done.stderr
