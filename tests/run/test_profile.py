"""A profile shows the phases and the operations of the steps that were asked for, and no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from ovlt.run.metrics import PhaseTimer
from ovlt.run.profile import StepProfiler


def test_the_steps_after_the_first_are_recorded_with_their_phases(tmp_path: Path) -> None:
    timer = PhaseTimer()
    profiler = StepProfiler(tmp_path, 2, first=5, rank=1, device=torch.device("cpu"))
    for step in range(5, 10):
        profiler.at(step)
        with timer(f"step{step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.close()
    with gzip.open(tmp_path / "profile" / "rank-1.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::mm" in names
    assert {name for name in names if str(name).startswith("step")} == {"step6", "step7"}
    assert "aten::mm" in (tmp_path / "profile" / "rank-1.txt").read_text()


def test_a_run_that_ends_early_keeps_what_there_is_and_none_is_written_unasked(
    tmp_path: Path,
) -> None:
    profiler = StepProfiler(tmp_path / "short", 9, first=0, rank=0, device=torch.device("cpu"))
    profiler.at(0)
    profiler.at(1)
    profiler.close()
    assert (tmp_path / "short" / "profile" / "rank-0.txt").is_file()
    off = StepProfiler(tmp_path / "off", 0, first=0, rank=0, device=torch.device("cpu"))
    for step in range(3):
        off.at(step)
    off.close()
    assert not (tmp_path / "off").exists()
