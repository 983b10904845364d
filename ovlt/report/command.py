"""``python -m ovlt.report RUN_DIR``: one self-contained report.html, and summary.json beside it.

The page is a function of the run folder: the same folder gives the same bytes. It needs no network,
now or later, and can be mailed or put in an archive as it is.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovlt.report.charts import interval_chart, line_chart, stacked_chart
from ovlt.report.collect import read_run
from ovlt.report.cycle import distillations, during_grpo, read_cycle
from ovlt.report.cycle_figures import cycle_view
from ovlt.report.page import render
from ovlt.report.samples import rollout_steps

# title, {metric: legend}, percent; the first six are shown at once, the others behind a click.
_FIGURES: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Validation accuracy, %", {"val/greedy": "greedy", "val/sampled": "sampled"}, True),
    ("Mean reward", {"reward/mean": "reward"}, False),
    (
        "Answer length, tokens",
        {"response/tokens_mean": "training", "val/tokens_mean": "validation"},
        False,
    ),
    ("Loss", {"loss": "loss"}, False),
    ("Engine-trainer mismatch, KL in nats", {"mismatch/kl": "KL"}, False),
    ("Mismatch, largest |log-prob difference|", {"mismatch/max_abs": "max"}, False),
    ("Gradient norm", {"grad_norm": "norm"}, False),
    ("Entropy, nats per token", {"entropy": "entropy"}, False),
    ("Learning rate", {"lr": "rate"}, False),
    ("Tokens per second", {"tokens_per_second": "tokens/s"}, False),
    ("Groups without signal, %", {"groups/no_signal_frac": "share"}, True),
    (
        "Clipped and truncated, %",
        {"clip/frac": "ratio clipped", "is/truncated_frac": "weight truncated"},
        True,
    ),
)
_SHOWN_AT_ONCE = {title for title, _, _ in _FIGURES[:5]} | {"Seconds per step, by phase"}


def write_report(run_dir: Path, out: Path | None = None, baseline: str = "sft") -> Path:
    """Write the report of a run folder and return its path (default RUN_DIR/report.html).

    ``summary.json`` beside it holds the same figures. Raises ValueError when there is no stage.
    """
    out = Path(out) if out is not None else run_dir / "report.html"
    summary = read_run(run_dir, baseline)
    cycle = read_cycle(run_dir)
    if cycle is not None:
        cycle["during_grpo"] = during_grpo(cycle, summary["stages"])
        cycle["distillation"] = distillations(run_dir, cycle)
        summary["cycle"] = cycle
        controls = {stage["name"] for stage in cycle["stages"] if stage["comparison"]}
        for stage in summary["stages"]:
            if stage["name"] in controls:  # the stage before it happens to be another control
                stage["difference"]["previous"] = None
    page = render(build_view(run_dir, summary))
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, page.encode("utf-8"))
    strict = json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n"
    _write(out.with_name("summary.json"), strict.encode("ascii"))
    return out


def build_view(run_dir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What the template needs besides the figures themselves: charts, family tables, rollouts."""
    stages = []
    for stage in summary["stages"]:
        figures = _figures(stage)
        stages.append(
            {
                **stage,
                "main_figures": [f for f in figures if f["title"] in _SHOWN_AT_ONCE],
                "more_figures": [f for f in figures if f["title"] not in _SHOWN_AT_ONCE],
                "rollouts": rollout_steps(run_dir / stage["name"]),
            }
        )
    rows = [
        {"label": stage["title"], "marks": _marks(stage["evaluation"])}
        for stage in stages
        if stage["evaluation"] is not None
    ]
    return {
        **summary,
        "stages": stages,
        "overview": interval_chart(rows),
        "cycle": cycle_view(summary["cycle"]) if "cycle" in summary else None,
        "families": [
            table
            for key, heading in (("by_source", "source"), ("by_kind", "kind of question"))
            if (table := _family_table(stages, key, heading))
        ],
    }


def _figures(stage: dict[str, Any]) -> list[dict[str, Any]]:
    figures = []
    for title, names, percent in _FIGURES:
        lines = {}
        for name, legend in names.items():
            curve = stage["curves"].get(name, {"steps": [], "values": []})
            if any(value is not None for value in curve["values"]):
                lines[legend] = list(zip(curve["steps"], curve["values"], strict=True))
        if lines:
            figure = line_chart(title, lines, percent=percent)
            lost = {name: stage["non_finite"].get(name, []) for name in names}
            figure["lost"] = sum(len(steps) for steps in lost.values())
            figure["lost_first"] = min((s for steps in lost.values() for s in steps), default=None)
            figures.append(figure)
    phases = stage["seconds_by_phase"]
    steps = sorted({step for curve in phases.values() for step in curve["steps"]})
    if steps:
        columns = {n: dict(zip(c["steps"], c["values"], strict=True)) for n, c in phases.items()}
        layers = {name: [(s, column.get(s)) for s in steps] for name, column in columns.items()}
        figures.append(stacked_chart("Seconds per step, by phase", layers) | {"lost": 0})
    return figures


def _marks(evaluation: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    marks = {}
    for mode in ("greedy", "sampled"):
        accuracy, interval = evaluation[mode]["accuracy"], evaluation[mode]["ci95"]
        if accuracy is not None:
            low, high = interval or (accuracy, accuracy)
            marks[mode] = (accuracy, low, high)
    return marks


def _family_table(stages: list[dict[str, Any]], key: str, heading: str) -> dict[str, Any] | None:
    judged = [stage for stage in stages if stage["evaluation"] and stage["evaluation"][key]]
    names = sorted({name for stage in judged for name in stage["evaluation"][key]})
    if not names:
        return None
    rows = []
    for name in names:
        cells = [stage["evaluation"][key].get(name) for stage in judged]
        counts = [cell["num"] for cell in cells if cell and cell["num"] is not None]
        rows.append({"name": name, "num": max(counts, default=None), "cells": cells})
    return {"heading": heading, "stages": [stage["title"] for stage in judged], "rows": rows}


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ovlt.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder that holds the stages of a run")
    parser.add_argument("--out", type=Path, help="HTML file to write (default RUN_DIR/report.html)")
    parser.add_argument(
        "--baseline", default="sft", help="stage that the others are compared with (default sft)"
    )
    arguments = parser.parse_args(argv)
    try:
        out = write_report(arguments.run_dir, arguments.out, arguments.baseline)
    except ValueError as error:
        parser.error(str(error))
    print(f"{out}\n{out.with_name('summary.json')}")
