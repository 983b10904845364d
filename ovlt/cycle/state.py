"""``cycle.json``: which stages of a cycle are done, and with what they were made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovlt.config.changes import MAY_CHANGE, changes_between, matches
from ovlt.cycle.stages import Step
from ovlt.system.files import held, read_json, write_json

NAME = "cycle.json"


@contextlib.contextmanager
def only_here(folder: Path, patience: float = 20.0) -> Iterator[None]:
    """Hold the run folder, or say after ``patience`` seconds that another cycle does.

    Its stages hold it too (``files.held``). Raises ValueError.
    """
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(held(folder / "cycle.lock", patience))
    except TimeoutError:
        raise ValueError(
            f"another `ovlt cycle` runs in {folder}: wait for it, or give another --run.folder"
        ) from None
    with lock:
        yield


class State:
    """The record of one run folder, written after every change."""

    def __init__(self, folder: Path, seed: int):
        self.path, self.seed = folder / NAME, seed
        self.entries: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.entries = {entry["name"]: entry for entry in read_json(self.path)["stages"]}

    def announce(self, steps: Sequence[Step]) -> None:
        """Know of these stages, in this order, after those that are known already.

        Raises ValueError where one that is done, or begun, was made with other settings.
        """
        for step in steps:
            entry = self.entries.setdefault(step.name, {"status": "waiting", "seconds": 0.0})
            made_with = settings(step)
            before = entry.get("settings", made_with)
            compared = {name: made_with[name] for name in before}  # older records lack tables
            changes = [
                text for key, text in changes_between(before, compared)
                if not matches(key, MAY_CHANGE)
            ]  # fmt: skip
            if entry["status"] != "waiting" and changes:
                raise ValueError(
                    f"{step.folder} was made with other settings: {'; '.join(changes[:3])}: give "
                    "the former ones, or delete that folder and those of the stages after it and "
                    f"their entries in {self.path}, or give another --run.folder"
                )
            entry |= {
                "name": step.name, "table": step.table, "iteration": step.iteration,
                "comparison": step.comparison, "title": step.title, "settings": made_with,
            }  # fmt: skip
        self._write()

    def is_done(self, step: Step) -> bool:
        """Done, and what it made still there."""
        there = step.output is None or step.output.exists()
        return self.entries[step.name]["status"] == "done" and there

    @contextlib.contextmanager
    def running(self, step: Step) -> Iterator[None]:
        """Mark a stage as running, then as done with its seconds; those of a try that ended early
        are kept too."""
        entry, started = self.entries[step.name], time.monotonic()
        before = float(entry["seconds"])
        entry["status"] = "running"
        self._write()
        try:
            yield
            entry["status"] = "done"
        finally:
            entry["seconds"] = round(before + time.monotonic() - started, 1)
            self._write()

    def seconds(self, name: str) -> float:
        """Of a stage, all its tries together; 0 of one that nobody has asked for."""
        return float(self.entries.get(name, {"seconds": 0.0})["seconds"])

    def _write(self) -> None:
        write_json(self.path, {"seed": self.seed, "stages": list(self.entries.values())})


def settings(step: Step) -> dict[str, Any]:
    """What decides what a stage makes and how it is measured: its own table, and those that all
    stages read."""
    tree = step.recipe.resolved()
    names = ("run", "model", "data", "engine", "reward", "evaluate", step.table)
    return {name: tree[name] for name in names}
