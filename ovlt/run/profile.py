"""Profile some steps of a stage: what takes the time and the memory, and where the device waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ovlt.run.metrics import PHASE

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

ROWS = 40  # of the tables: the dearest operations
STEP = "step "  # what the range of a step is called in the trace, before its number
# Allocations and frees that a memory snapshot keeps, the newest. Each takes about a kilobyte.
SNAPSHOT_ENTRIES = 200_000
Span = tuple[float, float]  # start and end, in microseconds


class StepProfiler:
    """Records ``steps`` steps with torch.profiler, after the first one, which warms everything up.

    Writes into ``profile/`` of the stage's folder, for rank N:

    - ``rank-N.json.gz``: a trace for https://ui.perfetto.dev or chrome://tracing, with steps and
      their phases as ranges;
    - ``rank-N.txt``: seconds and idle time of each phase, and the dearest operations by time and by
      memory;
    - ``rank-N-memory.pickle``, on a GPU: every allocation with its stack, for
      https://pytorch.org/memory_viz. It is torch's own format, and nothing of ovlt reads it.
    """

    def __init__(
        self, folder: Path, steps: int, *, first: int, rank: int, device: torch.device
    ) -> None:
        self.path = folder / "profile" / f"rank-{rank}"
        self.begin, self.end = first + 1, first + 1 + steps
        self.device = device
        self._profiler: profile | None = None
        self._step = ExitStack()  # the range of the step at work

    def at(self, step: int) -> None:
        """Start or stop, if it is time to; called at the beginning of every step."""
        self._step.close()
        if step >= self.end:
            self.close()
            return
        if step >= self.begin and self._profiler is None:
            self._start()
        if self._profiler is not None:
            self._step.enter_context(record_function(f"{STEP}{step}"))

    def close(self) -> None:
        """Write what was recorded; a second call does nothing."""
        self._step.close()
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        self.begin = self.end  # once is enough
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is queued belongs to the last step
        profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(f"{self.path}-memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        profiler.export_chrome_trace(f"{self.path}.json.gz")
        Path(f"{self.path}.txt").write_text(self._tables(profiler), encoding="utf-8")

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            # Stacks of C++ would take longer than the step.
            torch.cuda.memory._record_memory_history(stacks="python", max_entries=SNAPSHOT_ENTRIES)
        self._profiler = profile(activities=activities, profile_memory=True)
        self._profiler.start()

    def _tables(self, profiler: profile) -> str:
        events = profiler.events() or []
        averages = profiler.key_averages()
        device = self.device.type
        unit = "no kernel" if device == "cuda" else "no operation"
        blocks = [
            f"Phases, all recorded steps. Idle: {unit} runs.",
            phase_table(phase_times(events, device=device)),
            "Dearest operations by time",
            averages.table(sort_by=f"self_{device}_time_total", row_limit=ROWS),
            "Dearest operations by memory",
            averages.table(sort_by=f"self_{device}_memory_usage", row_limit=ROWS),
        ]
        return "\n\n".join(blocks) + "\n"


class PhaseTime(NamedTuple):
    """Seconds of one phase of all steps, and those of them in which the device had nothing."""

    name: str
    seconds: float
    idle: float


def phase_times(events: Iterable[FunctionEvent], *, device: str) -> list[PhaseTime]:
    """Return the time of each phase without the phases inside it; "other" is outside any.

    On a GPU the device is busy while a kernel or a copy runs, and a phase lasts as long as the host
    is in it: work that is queued in one phase may run in the next. On a CPU the device is busy
    while an operation runs on any thread.
    """
    steps: list[Span] = []
    phases: list[tuple[str, Span]] = []
    busy: list[Span] = []
    for event in events:
        span = (float(event.time_range.start), float(event.time_range.end))
        on_gpu = event.device_type == DeviceType.CUDA
        if event.is_user_annotation or event.name.startswith((STEP, PHASE)):
            if not on_gpu and event.name.startswith(STEP):
                steps.append(span)
            elif not on_gpu and event.name.startswith(PHASE):
                phases.append((event.name.removeprefix(PHASE), span))
        elif on_gpu == (device == "cuda"):
            busy.append(span)
    busy = joined(busy)
    own: dict[str, list[Span]] = {}
    for name, span in phases:
        inner = [s for _, s in phases if s != span and span[0] <= s[0] and s[1] <= span[1]]
        own.setdefault(name, []).extend(without([span], joined(inner)))
    own["other"] = without(joined(steps), joined([span for _, span in phases]))
    return [
        PhaseTime(name, 1e-6 * length(spans), 1e-6 * length(without(joined(spans), busy)))
        for name, spans in own.items()
    ]


def phase_table(times: Sequence[PhaseTime]) -> str:
    """Return a table of phases in plain text, with their sum."""
    total = PhaseTime("all", sum(t.seconds for t in times), sum(t.idle for t in times))
    lines = [f"{'phase':<16} {'seconds':>10} {'idle':>10} {'idle %':>7}"]
    lines += [
        f"{name:<16} {seconds:10.4f} {idle:10.4f} {100 * idle / max(seconds, 1e-9):7.1f}"
        for name, seconds, idle in [*times, total]
    ]
    return "\n".join(lines)


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans, in order and apart from each other."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def without(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """Return what is left of spans outside ``others``; both are in order and apart."""
    rest: list[Span] = []
    at = 0
    for start, end in spans:
        while at < len(others) and others[at][1] <= start:
            at += 1
        here, now = at, start
        while here < len(others) and others[here][0] < end:
            if others[here][0] > now:
                rest.append((now, others[here][0]))
            now = max(now, others[here][1])
            here += 1
        if now < end:
            rest.append((now, end))
    return rest


def length(spans: Iterable[Span]) -> float:
    """Return the sum of the spans' lengths."""
    return sum(end - start for start, end in spans)
