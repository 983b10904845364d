"""``cycle.json``: which stages of a cycle are done, and with what settings they were made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from ovlt import __version__
from ovlt.config.changes import MAY_CHANGE, changes_between, matches
from ovlt.config.trees import Tree
from ovlt.cycle.stages import CycleStage, Kind
from ovlt.run.version import other_version, version_record
from ovlt.system.files import locked, read_object, write_json

NAME = "cycle.json"


class StageEntry(TypedDict):
    """What cycle.json holds of one stage."""

    status: str  # waiting, running or done
    seconds: float  # of all attempts together
    name: str
    table: Kind
    iteration: int
    comparison: str
    title: str
    settings: Tree
    inputs: NotRequired[dict[str, str]]  # path -> digest, of a stage that is done


@contextlib.contextmanager
def only_here(folder: Path, patience: float = 20.0) -> Iterator[None]:
    """Lock the run folder against other cycles, also for the stages started meanwhile.

    Raises ValueError if another cycle still has the lock after ``patience`` seconds.
    """
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(locked(folder / "cycle.lock", patience))
    except TimeoutError as error:
        raise ValueError(
            f"another `ovlt cycle` runs in {folder}: {error}; wait for it, or give another "
            "--run.folder"
        ) from None
    with lock:
        yield


class CycleRecord:
    """The cycle.json of one run folder, written after every change.

    Raises ValueError if another version of ovlt wrote it in another format.
    """

    def __init__(self, folder: Path, seed: int):
        self.path, self.seed = folder / NAME, seed
        self.entries: dict[str, StageEntry] = {}
        if self.path.is_file():
            record = read_object(self.path)
            if version := other_version(record):
                raise ValueError(
                    f"{self.path} was written by ovlt {version} and this is "
                    f"{__version__}, whose recipes have other tables: finish that cycle with the "
                    "version that began it, or give another --run.folder"
                )
            self.entries = {entry["name"]: entry for entry in record["stages"]}

    def add(self, stages: Sequence[CycleStage]) -> None:
        """Add these stages, in order, after those that are recorded already.

        Raises ValueError if one that is done, or begun, was made with other settings.
        """
        for stage in stages:
            settings = settings_of(stage)
            before = self.entries.get(stage.name)
            changes: list[str] = []
            if before and (
                before["status"] == "done" or (before["status"] == "running" and has_result(stage))
            ):
                changes = [
                    text
                    for key, text in changes_between(before["settings"], settings)
                    if not matches(key, MAY_CHANGE)
                ]
            if changes:
                raise ValueError(
                    f"{stage.folder} was made with other settings: {'; '.join(changes[:3])}: give "
                    "the former ones, or delete that folder and those of the stages after it and "
                    f"their entries in {self.path}, or give another --run.folder"
                )
            self.entries[stage.name] = {
                "status": before["status"] if before else "waiting",
                "seconds": before["seconds"] if before else 0.0,
                "name": stage.name,
                "table": stage.table,
                "iteration": stage.iteration,
                "comparison": stage.comparison,
                "title": stage.title,
                "settings": settings,
                **({"inputs": before["inputs"]} if before and "inputs" in before else {}),
            }
        self._write()

    def is_done(self, stage: CycleStage) -> bool:
        """Return whether a stage is done and its output still there."""
        is_there = stage.output is None or stage.output.exists()
        return self.entries[stage.name]["status"] == "done" and is_there

    @contextlib.contextmanager
    def running(self, stage: CycleStage) -> Iterator[None]:
        """Mark a stage as running, and as done when the ``with`` block ends without an error.

        Its seconds grow by those of the block in either case.
        """
        entry, started = self.entries[stage.name], time.monotonic()
        before = entry["seconds"]
        entry["status"] = "running"
        self._write()
        try:
            yield
            entry["status"] = "done"
        finally:
            entry["seconds"] = round(before + time.monotonic() - started, 1)
            self._write()

    def made_of(self, name: str, inputs: dict[str, str]) -> None:
        """Keep the digests of what a stage was made of, by path."""
        self.entries[name]["inputs"] = inputs
        self._write()

    def changed_inputs(self, name: str, inputs: Mapping[str, str]) -> list[str]:
        """Return the paths whose contents are others than when a stage was made."""
        before = self.entries[name].get("inputs", {})
        return [path for path, now in inputs.items() if before.get(path, now) != now]

    def seconds(self, name: str) -> float:
        """Return the total seconds of a stage over all attempts; 0 if it never ran."""
        return self.entries[name]["seconds"] if name in self.entries else 0.0

    def _write(self) -> None:
        stages = list(self.entries.values())
        write_json(self.path, version_record() | {"seed": self.seed, "stages": stages})


def has_result(stage: CycleStage) -> bool:
    """Return whether a stage has come as far as a step, a record or a measurement."""
    folder = stage.folder
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        return True
    made = ("evaluation.json", "rows.parquet", "model", "checkpoints/step_*", "*/*-*.jsonl")
    return any(next(folder.glob(pattern), None) for pattern in made)


def settings_of(stage: CycleStage) -> Tree:
    """Return the tables that decide what a stage makes and how it is measured."""
    tree = stage.recipe.resolved()
    names = ("run", "model", "data", "engine", "reward", "evaluate", stage.table)
    return {name: tree[name] for name in names}
