"""The folder of one run: who may use it, and how ranks agree about it.

If one rank fails (a full disk, a torn file) and the others do not learn of it, they wait in the
next collective until it times out. So whatever touches the folder goes through ``on_all_ranks``.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovlt.config.changes import LENGTH, MAY_CHANGE, PLACES, changes_between, matches
from ovlt.run.version import check_format, defaults, version_record, without_version
from ovlt.system.collectives import on_all_ranks, rank_and_world_size
from ovlt.system.files import locked, read_object, write_json

RECIPE, METRICS, CONTENTS = "recipe.json", "metrics.jsonl", "contents.json"
LOCK = ".lock"
PATIENCE_S = 10.0  # in which the ranks of a run that was killed a moment ago are gone

# Digests of what a run is made with (rows, models, reward), by name.
Contents = Mapping[str, str]

_locks: dict[Path, contextlib.ExitStack] = {}  # of this process, until it ends


class Claim:
    """The right of one process to a run folder, from the start of a command to its end.

    Nothing but a lock is written before ``record``, so a start that fails changes nothing.

    Attributes:
        folder: the folder.
        holds: what of an earlier run is there; empty: none has come as far as a step.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        self.folder, self.recipe = folder, recipe
        self.holds: list[str] = []
        self.moved: list[str] = []  # paths that the recipe has changed, to be allowed by contents
        self.contents: Contents = {}

    def compare(self, contents: Contents, *, accept: bool = False) -> None:
        """Compare what the run would be made with with what it was made with. Collective.

        Raises ValueError that names what has changed, unless ``accept``; then it is a warning.
        """
        self.contents = contents

        def work() -> None:
            if rank_and_world_size()[0] == 0 and self.holds:
                self._compare(accept=accept)

        on_all_ranks(work)

    def _compare(self, *, accept: bool) -> None:
        path = self.folder / CONTENTS
        before = read_object(path) if path.is_file() else {}
        changed = sorted(
            name
            for name in before.keys() | self.contents.keys()
            if before and before.get(name) != self.contents.get(name)
        )
        if not changed:
            return
        if self.moved:
            raise ValueError(_other_recipe(self.folder, self.moved))
        text = (
            f"{self.folder} holds a run that was made with other contents than these files have "
            f"now: {some(changed, 6)}"
        )
        if accept:
            warnings.warn(f"{text}; going on, as run.accept_changes says", stacklevel=4)
            return
        raise ValueError(
            f"{text}: put them back as they were, go on all the same with "
            "--run.accept_changes=true, or give another --run.folder"
        )

    def record(self) -> None:
        """Write recipe and contents: the run begins, or goes on. Collective."""

        def work() -> None:
            if rank_and_world_size()[0] == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / CONTENTS, dict(self.contents))
                write_json(self.folder / RECIPE, self.recipe | version_record())

        on_all_ranks(work)


def claim_run_folder(
    folder: Path | str,
    recipe: dict[str, Any],
    resume: str,
    *,
    may_change: tuple[str, ...] = (),
    result: str = "",
) -> Claim:
    """Lock ``folder`` for the run that ``recipe`` describes, or say why not. Collective.

    ``resume`` "never": the folder holds no metrics and no checkpoint. "auto": it may hold the same
    run, whose recipe (JSON values) differs at most in the keys of ``MAY_CHANGE``, ``LENGTH`` and
    ``may_change``, and in ``PLACES`` if the contents are the same; a change of length gives a
    warning. ``result`` is a file that only the same recipe may write again. Raises ValueError.
    """
    if resume not in ("never", "auto"):
        raise ValueError(f"resume={resume!r}: give 'never' or 'auto'")
    claim = Claim(Path(folder), json.loads(json.dumps(recipe)))

    def work() -> None:
        if rank_and_world_size()[0] == 0:
            lock_folder(claim.folder)
            _check(claim, resume, MAY_CHANGE + may_change, result)

    on_all_ranks(work)
    return claim


def lock_folder(folder: Path) -> None:
    """Keep a folder for this process, and those that it starts, until it ends. ValueError."""
    place = folder.resolve()
    if place in _locks:
        return
    held = contextlib.ExitStack()
    try:
        held.enter_context(locked(folder / LOCK, PATIENCE_S))
    except TimeoutError as error:
        raise ValueError(
            f"{folder} is in use: {error}; wait until that ends, or give another --run.folder"
        ) from None
    _locks[place] = held


def _check(claim: Claim, resume: str, may_change: tuple[str, ...], result: str) -> None:
    folder, elsewhere = claim.folder, "or give another --run.folder"
    claim.holds = holds = _holdings(folder)
    recorded = (folder / RECIPE).exists()
    if holds and resume == "auto" and not recorded:
        raise ValueError(
            f"{folder} holds {some(holds)} but no {RECIPE}, so the run cannot be "
            f"identified: delete that folder, {elsewhere}"
        )
    changes: list[tuple[str, str]] = []
    if recorded and (holds or (result and (folder / result).exists())):
        earlier = read_object(folder / RECIPE)
        check_format(folder, earlier)
        changes = changes_between(without_version(earlier), claim.recipe, defaults())
    changes = [(key, text) for key, text in changes if not matches(key, may_change)]
    places = PLACES if holds and (folder / CONTENTS).is_file() else ()
    claim.moved = [text for key, text in changes if matches(key, places)]
    if forbidden := [text for key, text in changes if not matches(key, places + LENGTH)]:
        raise ValueError(_other_recipe(folder, forbidden))
    if holds and resume == "never":
        raise ValueError(
            f"{folder} holds a run already ({some(holds)}): continue it with `--resume auto`, "
            f"{elsewhere}"
        )
    if longer := [text for key, text in changes if holds and matches(key, LENGTH)]:
        warnings.warn(
            f"{folder} is continued with another length: {some(longer)}; a learning-rate schedule "
            "that ends with the run now ends there",
            stacklevel=5,
        )


def _holdings(folder: Path) -> list[str]:
    """Name what a run that has come as far as a step has left: metrics, checkpoints."""
    metrics = folder / METRICS
    holds = [METRICS] if metrics.is_file() and metrics.stat().st_size else []
    for depth in ("", "*/"):  # and not `**`, which would not follow a link to a larger disk
        holds += sorted(p.parent.name for p in folder.glob(f"{depth}step_*/manifest.json"))
    return holds


def _other_recipe(folder: Path, changes: list[str]) -> str:
    return (
        f"{folder} holds a run with another recipe: {some(changes)}; to continue that run "
        "give the former values and `--resume auto`; else delete that folder, or give another "
        "--run.folder"
    )


def require_json(value: Any, where: str) -> None:
    """Raise ValueError for what JSON changes: tuples, keys that are no strings, numpy scalars."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: key {key!r} is no string; JSON has only such keys")
            require_json(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            require_json(item, f"{where}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(
            f"{where} is a {type(value).__name__}, which JSON would not give back: use dict, list, "
            "str, int, float, bool or None"
        )


def some(items: list[Any], most: int = 3) -> str:
    """Name the first few of a list, and how many more there are, for an error message."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(str(item) for item in items[:most]) + more
