"""Profile some steps of a stage: which operations and phases take the time, on every rank."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 40  # of the table: the dearest operations


class StepProfiler:
    """Records ``steps`` steps with torch.profiler, after the first one, which warms everything up.

    Writes ``profile/rank-N.json.gz`` (a trace for https://ui.perfetto.dev or chrome://tracing, with
    the phases of a step as ranges) and ``profile/rank-N.txt`` (the dearest operations) into the
    stage's folder.
    """

    def __init__(
        self, folder: Path, steps: int, *, first: int, rank: int, device: torch.device
    ) -> None:
        self.path = folder / "profile" / f"rank-{rank}"
        self.begin, self.end = first + 1, first + 1 + steps
        self.device = device
        self._profiler: profile | None = None

    def at(self, step: int) -> None:
        """Start or stop, if it is time to; called at the beginning of every step."""
        if step >= self.end:
            self.close()
        elif step >= self.begin and self._profiler is None:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities, profile_memory=True)
            self._profiler.start()

    def close(self) -> None:
        """Write what was recorded; a second call does nothing."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(f"{self.path}.json.gz")
        key = f"self_{self.device.type}_time_total"
        table = self._profiler.key_averages().table(sort_by=key, row_limit=ROWS)
        Path(f"{self.path}.txt").write_text(table, encoding="utf-8")
        self._profiler = None
        self.begin = self.end  # once is enough
