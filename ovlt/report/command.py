"""Writes one self-contained report.html of a run folder, and summary.json beside it.

The page is a function of the run folder: the same folder gives the same bytes. It needs no network,
now or later, and can be mailed or put in an archive as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ovlt.benchmarks.results import RESULT
from ovlt.config.fields import expanded
from ovlt.report.collect import read_run
from ovlt.report.cycle import distillations, during_grpo, read_cycle
from ovlt.report.page import render
from ovlt.report.summary import RunSummary
from ovlt.report.view import build_view
from ovlt.system.files import write_whole


def write_report(run_dir: Path, out: Path | None = None, baseline: str = "sft") -> Path:
    """Write the report of a run folder and return its path (default RUN_DIR/report.html).

    ``summary.json`` beside it holds the same figures. Raises ValueError if there is no stage.
    """
    out = Path(out) if out is not None else run_dir / "report.html"
    summary = summarize(run_dir, baseline)
    page = render(build_view(run_dir, summary))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode("utf-8"))
    strict = json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(out.with_name("summary.json"), strict.encode("ascii"))
    return out


def summarize(run_dir: Path, baseline: str = "sft") -> RunSummary:
    """Return everything in summary.json. Raises ValueError if there is no stage."""
    summary = read_run(run_dir, baseline)
    cycle = read_cycle(run_dir)
    if cycle is None:
        return summary
    summary["cycle"] = {
        **cycle,
        "during_grpo": during_grpo(cycle, summary["stages"]),
        "distillation": distillations(run_dir, cycle),
    }
    controls = {stage["name"] for stage in cycle["stages"] if stage["comparison"]}
    for stage in summary["stages"]:
        if stage["name"] in controls:  # the stage before it happens to be another control
            stage["difference"]["previous"] = None
    return summary


def _path(text: str) -> Path:
    return Path(expanded(text))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ovlt.report", description=__doc__)
    parser.add_argument("run_dir", type=_path, help="folder of a run, or of one benchmark result")
    parser.add_argument("--out", type=_path, help="HTML file (default RUN_DIR/report.html)")
    parser.add_argument(
        "--baseline", default="sft", help="stage that the others are compared with (default sft)"
    )
    parser.add_argument(
        "--compare", type=_path, help="of a benchmark result: another model's, shown beside it"
    )
    arguments = parser.parse_args(argv)
    try:
        if (arguments.run_dir / RESULT).is_file():
            # Here: it decodes images, and so loads torch, which a cycle's report does without.
            from ovlt.report.benchmark import write_page

            print(write_page(arguments.run_dir, arguments.out, arguments.compare))
            return
        out = write_report(arguments.run_dir, arguments.out, arguments.baseline)
    except ValueError as error:
        parser.error(str(error))
    print(f"{out}\n{out.with_name('summary.json')}")
