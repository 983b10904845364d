"""Read ``metrics.jsonl``, the record of a stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict


class MetricsLine(TypedDict):
    """One step. ``metrics`` and ``seconds`` hold null for a value that was not finite."""

    step: int
    metrics: dict[str, float]
    seconds: dict[str, float]  # of each phase


def read_metrics(folder: Path) -> list[MetricsLine]:
    """Read ``folder/metrics.jsonl``, oldest line first; [] if there is none.

    A last line that a kill cut short is left out. Damage anywhere else raises ValueError.
    """
    path = Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in whole_lines(path)] if path.exists() else []


def step_seconds(folder: Path) -> list[float]:
    """Seconds of each step of a stage, without validation and saving."""
    idle = ("validation", "checkpoint")
    lines = read_metrics(folder)
    return [sum(v for k, v in line["seconds"].items() if k not in idle) for line in lines]


def whole_lines(path: Path) -> list[bytes]:
    """Read the lines of a JSON-lines file, without a torn last one."""
    lines = path.read_bytes().splitlines(keepends=True)
    whole = []
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no line end")
            if not isinstance(json.loads(line), dict):
                raise ValueError("not an object")
            whole.append(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number}, is damaged ({error}): delete that line, or restore "
                    "the file"
                ) from error
    return whole


def drop_torn_tail(path: Path) -> None:
    """Cut off a last line without its line end, so that the next line does not continue it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
