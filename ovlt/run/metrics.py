"""Write what a run leaves behind: metrics.jsonl, rollouts, TensorBoard, a progress bar.

``metrics.jsonl`` is the record; TensorBoard and wandb are copies of it for those who like them.
Everything here survives a kill at any moment: lines are flushed whole, other files are renamed into
place, and ``MetricsWriter.resume`` takes back what a run wrote after its last checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch.profiler import record_function
from tqdm import tqdm

from ovlt.run.record import drop_torn_tail, whole_lines
from ovlt.system.files import write_whole

if TYPE_CHECKING:
    import numpy as np

    from ovlt.types import Group

PHASE = "phase "  # what the range of a phase is called in a profile, before its name
_ROLLOUT_FILE = re.compile(r"step_(\d{6,})\.jsonl")


class MetricsWriter:
    """Writes one stage's metrics and rollouts into ``folder``; every method is a no-op off rank 0.

    ``total_steps`` and ``start_step`` are optimizer steps and drive the progress bar on stderr.
    ``wandb`` is a project name; None (the default) never imports wandb or opens a connection.
    A folder that may hold an earlier run's lines needs ``resume`` before the first ``log``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = True,
        wandb: str | None = None,
        is_main: bool = True,
        total_steps: int,
        start_step: int = 0,
        description: str,
    ) -> None:
        self.folder, self.is_main = Path(folder), is_main
        self._use_tensorboard = tensorboard
        self._purge_step: int | None = None
        self._lines: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._bar: Any = None
        if not is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if wandb is not None:
            self._wandb = _start_wandb(wandb, description, self.folder)
        # A log file gets a line every 30 s; a terminal is redrawn twice a second.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total_steps, initial=start_step, desc=description, unit="step",
            file=sys.stderr, dynamic_ncols=True, mininterval=interval,
        )  # fmt: skip

    def log(self, step: int, metrics: dict[str, float], seconds: dict[str, float]) -> None:
        """Append one line. Non-finite values become null and are named under ``non_finite``."""
        if not self.is_main:
            return
        named = {**metrics, **{f"seconds/{phase}": value for phase, value in seconds.items()}}
        values = {name: _finite(value) for name, value in named.items()}
        line: dict[str, Any] = {
            "step": int(step),
            "time": round(time.time(), 3),
            "metrics": {name: values[name] for name in metrics},
            "seconds": {phase: values[f"seconds/{phase}"] for phase in seconds},
        }
        missing = [name for name, value in values.items() if value is None]
        if missing:
            line["non_finite"] = missing
        if self._lines is None:
            path = self.folder / "metrics.jsonl"
            drop_torn_tail(path)
            self._lines = path.open("a", encoding="utf-8")
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()

        finite = {name: value for name, value in values.items() if value is not None}
        if self._use_tensorboard:
            writer = self._tensorboard_writer()
            for name, value in finite.items():
                writer.add_scalar(name, value, step)
            writer.flush()
        if self._wandb is not None:
            self._wandb.log(finite, step=step)
        self._bar.set_postfix_str(_bar_text(finite), refresh=False)
        self._bar.update(step - self._bar.n)

    def log_rollouts(self, step: int, groups: Sequence[Group]) -> None:
        """Write ``rollouts/step_NNNNNN.jsonl``, one group per line, replacing that step's file.

        Images go to ``images/<first 16 hex digits of their SHA-256>.png``, once per image and run.
        """
        if not self.is_main:
            return
        folder = self.folder / "rollouts"
        folder.mkdir(exist_ok=True)
        lines = []
        for group in groups:
            prompt = group.prompt
            line = {
                "step": int(step),
                "prompt_id": prompt.id,
                "source": prompt.source,
                "question": prompt.question,
                "answer": prompt.answer,
                "images": [self._image(pixels) for pixels in prompt.images],
                "samples": [
                    {
                        "text": sample.text,
                        "reward": _finite(sample.reward),
                        "parts": {k: _finite(v) for k, v in sample.reward_parts.items()},
                        "reason": sample.reason,
                        "advantage": _finite(sample.advantage),
                        "tokens": sample.num_response_tokens,
                        "finished": bool(sample.finished),
                    }
                    for sample in group.samples
                ],
            }
            # ASCII escapes keep lone surrogates, which a model can produce, writable as UTF-8.
            lines.append(json.dumps(line, allow_nan=False, ensure_ascii=True) + "\n")
        write_whole(folder / f"step_{step:06d}.jsonl", "".join(lines).encode("ascii"))

    def resume(self, step: int) -> None:
        """Drop everything logged after ``step``, the last step of the checkpoint being resumed.

        A torn last line goes too. ``resume(-1)`` empties the record for a run that starts afresh.
        Killed halfway, it is simply called again.
        """
        if not self.is_main:
            return
        self._close_lines()
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= step]
            write_whole(path, b"".join(kept))
        for file in sorted((self.folder / "rollouts").glob("step_*"), reverse=True):
            match = _ROLLOUT_FILE.fullmatch(file.name)
            if match is None or int(match[1]) > step:  # no match: a temporary file of a killed run
                file.unlink()
            else:
                drop_torn_tail(file)
        # TensorBoard keeps old event files but hides what they hold from this step on.
        self._purge_step = step + 1
        self._bar.n = max(step, 0)
        self._bar.initial = max(step, 0)
        self._bar.refresh()

    def close(self) -> None:
        """Flush and close everything; a second call does nothing."""
        self._close_lines()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._bar is not None:
            self._bar.close()
        self._tensorboard = self._wandb = None

    def _close_lines(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _tensorboard_writer(self) -> Any:
        # torch's own writer: kept in step with torch, which a run imports anyway, and its package,
        # tensorboard, is also what shows the curves. tensorboardX would be a second writer of the
        # same files, and names them by the second, so that a quick resume overwrites them.
        if self._tensorboard is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(
                    "TensorBoard logging needs the tensorboard package: run `pip install "
                    "tensorboard`, or switch TensorBoard off in the recipe"
                ) from error
            self._tensorboard = SummaryWriter(str(self.folder / "tb"), purge_step=self._purge_step)
        return self._tensorboard

    def _image(self, pixels: np.ndarray) -> str:
        if pixels.dtype.name != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"a prompt image must be uint8 [height, width, 3]; this one is {pixels.dtype.name} "
                f"{list(pixels.shape)}: decode it with ovlt.data.images"
            )
        content = pixels.tobytes()
        digest = hashlib.sha256(repr(pixels.shape).encode() + content).hexdigest()[:16]
        name = f"images/{digest}.png"
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            # Level 1: encoding happens while the GPUs wait; the usual level 6 takes 3 times longer.
            Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
            write_whole(path, buffer.getvalue())
        return name


class PhaseTimer:
    """Seconds of each phase of a step: ``with timer("rollout"): ...``.

    Host time: on a GPU a phase ends when its work is queued unless the phase itself synchronizes.
    A phase inside another is charged to the inner one only, so the phases and ``other`` (time
    outside any phase) always add up to the wall time since the last ``reset``.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self.reset()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._charge()
        self._open.append(phase)
        self._seconds.setdefault(phase, 0.0)
        try:
            with record_function(PHASE + phase):  # a range of the profile, if one is taken
                yield
        finally:
            self._charge()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds per phase since the last ``reset``, in order of first use, ``other`` last."""
        self._charge()
        return {**self._seconds, "other": self._other}

    def take(self) -> dict[str, float]:
        """Return ``seconds`` and start a new step, so that no time is lost in between."""
        seconds = self.seconds()
        self.reset()
        return seconds

    def reset(self) -> None:
        """Start a new step: all phases at zero."""
        self._seconds: dict[str, float] = {}
        self._other = 0.0
        self._last = time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            phase = self._open[-1]
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        else:
            self._other += now - self._last
        self._last = now


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _bar_text(metrics: dict[str, float]) -> str:
    parts = []
    if "reward/mean" in metrics:
        parts.append(f"reward {metrics['reward/mean']:.3f}")
    elif "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    if "response/tokens_mean" in metrics:
        parts.append(f"{metrics['response/tokens_mean']:.0f} tokens/answer")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)


def check_wandb(project: str) -> None:
    """Raise ValueError if a run is to be logged to wandb, and it is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "the recipe asks for wandb, which is not installed: run `pip install wandb`, or leave "
            "the wandb project out"
        )


def _start_wandb(project: str, description: str, folder: Path) -> Any:
    check_wandb(project)
    import wandb  # optional

    # wandb refuses steps that go back, so a resumed run is a new run in the same group.
    return wandb.init(project=project, name=description, group=description, dir=str(folder))
