"""A profile shows the phases, idle time and operations of the steps asked for, and no others."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch

from ovlt.run.metrics import PhaseTimer
from ovlt.run.profile import StepProfiler, joined, length, without

CPU = torch.device("cpu")


def work() -> None:
    torch.ones(300, 300) @ torch.ones(300, 300)


def test_the_steps_after_the_first_are_recorded_with_their_phases(tmp_path: Path) -> None:
    timer = PhaseTimer()
    profiler = StepProfiler(tmp_path, 2, first=5, rank=1, device=CPU)
    for step in range(5, 10):
        profiler.at(step)
        with timer(f"of {step}"):
            work()
    profiler.close()
    with gzip.open(tmp_path / "profile" / "rank-1.json.gz", "rt") as file:
        names = {str(event.get("name")) for event in json.load(file)["traceEvents"]}
    assert "aten::mm" in names
    assert {name for name in names if name.startswith("step ")} == {"step 6", "step 7"}
    assert {name for name in names if name.startswith("phase ")} == {"phase of 6", "phase of 7"}
    assert [path.name for path in sorted((tmp_path / "profile").iterdir())] == [
        "rank-1.json.gz", "rank-1.txt",
    ]  # fmt: skip


def test_the_tables_name_idle_time_by_phase_and_the_dearest_operations(tmp_path: Path) -> None:
    timer = PhaseTimer()
    profiler = StepProfiler(tmp_path, 1, first=0, rank=0, device=CPU)
    for step in range(3):
        profiler.at(step)
        with timer("asleep"):
            time.sleep(0.2)
            with timer("at work"):  # charged to itself alone
                torch.ones(900, 900) @ torch.ones(900, 900)
        time.sleep(0.1)
    text = (tmp_path / "profile" / "rank-0.txt").read_text()
    assert "Dearest operations by memory" in text
    assert "aten::mm" in text
    lines = {line[:16].strip(): line[16:].split() for line in text.splitlines()[:8]}
    seconds = {name: float(lines[name][0]) for name in ("asleep", "at work", "other", "all")}
    idle = {name: float(lines[name][1]) for name in seconds}
    assert 0.2 <= seconds["asleep"] < 0.3
    assert 0.1 <= seconds["other"] < 0.2
    assert idle["asleep"] > 0.95 * seconds["asleep"]
    assert idle["at work"] < 0.5 * seconds["at work"]
    assert seconds["all"] == pytest.approx(sum(seconds.values()) - seconds["all"], abs=1e-3)


def test_what_is_left_of_spans_outside_others() -> None:
    union = joined([(5, 7), (0, 2), (1, 3), (7, 8)])
    assert union == [(0, 3), (5, 8)]
    assert without([(0, 10)], union) == [(3, 5), (8, 10)]
    assert without([(1, 2), (6, 12)], union) == [(8, 12)]
    assert without(union, []) == union
    assert length(without([(0, 4), (6, 7)], [(1, 2), (3, 6.5)])) == 2.5


def test_on_a_gpu_the_history_of_the_memory_is_kept_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(memory, "_record_memory_history", lambda **k: calls.append(k))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda name: calls.append(Path(name).name))
    profiler = StepProfiler(tmp_path, 1, first=0, rank=3, device=torch.device("cuda", 0))
    for step in range(3):
        profiler.at(step)
        work()
    profiler.close()
    history = {"stacks": "python", "max_entries": 200_000}
    assert calls == [history, "rank-3-memory.pickle", {"enabled": None}]
    assert "no kernel runs" in (tmp_path / "profile" / "rank-3.txt").read_text()


def test_a_run_that_ends_early_keeps_what_there_is_and_none_is_written_unasked(
    tmp_path: Path,
) -> None:
    profiler = StepProfiler(tmp_path / "short", 9, first=0, rank=0, device=CPU)
    profiler.at(0)
    profiler.at(1)
    profiler.close()
    assert (tmp_path / "short" / "profile" / "rank-0.txt").is_file()
    off = StepProfiler(tmp_path / "off", 0, first=0, rank=0, device=CPU)
    for step in range(3):
        off.at(step)
    off.close()
    assert not (tmp_path / "off").exists()
