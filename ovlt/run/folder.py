"""The folder of one run: who may use it, and how ranks agree about it.

If one rank fails (a full disk, a torn file) and the others do not learn of it, they wait in the
next collective until it times out. So whatever touches the folder goes through ``on_all_ranks``.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from ovlt import __version__
from ovlt.config.changes import LENGTH, MAY_CHANGE, changes_between, matches
from ovlt.run.version import other_version, version_record, without_version
from ovlt.system.collectives import on_all_ranks, rank_and_world_size
from ovlt.system.files import read_object, write_json

RECIPE, METRICS = "recipe.json", "metrics.jsonl"


def claim_run_folder(folder: Path | str, recipe: dict[str, Any], resume: str) -> None:
    """Make ``folder`` the home of the run that ``recipe`` describes, or say why not. Collective.

    ``resume`` "never": the folder holds no metrics, no checkpoint and no other recipe. "auto": it
    may hold the same run, whose recipe (JSON values) differs at most in the keys of ``MAY_CHANGE``
    and ``LENGTH``; a change of length gives a warning. Writes ``recipe.json``. Raises ValueError.
    """
    if resume not in ("never", "auto"):
        raise ValueError(f"resume={resume!r}: give 'never' or 'auto'")

    def claim() -> None:
        if rank_and_world_size()[0] == 0:
            _claim(Path(folder), json.loads(json.dumps(recipe)), resume)

    on_all_ranks(claim)


def _claim(folder: Path, recipe: dict[str, Any], resume: str) -> None:
    elsewhere = "or give another --run.folder"
    holds = [METRICS] if (folder / METRICS).exists() else []
    for depth in ("", "*/"):  # and not `**`, which would not follow a link to a larger disk
        holds += sorted(p.parent.name for p in folder.glob(f"{depth}step_*/manifest.json"))
    changes = []
    if (folder / RECIPE).exists():
        earlier = read_object(folder / RECIPE)
        check_format(folder, earlier)
        changes = changes_between(without_version(earlier), recipe)
    elif holds and resume == "auto":
        raise ValueError(
            f"{folder} holds {some(holds)} but no {RECIPE}, so the run cannot be "
            f"identified: delete that folder, {elsewhere}"
        )
    if forbidden := [text for key, text in changes if not matches(key, MAY_CHANGE + LENGTH)]:
        raise ValueError(
            f"{folder} holds a run with another recipe: {some(forbidden)}; to continue that run "
            f"give the former values and `--resume auto`; else delete that folder, {elsewhere}"
        )
    if holds and resume == "never":
        raise ValueError(
            f"{folder} holds a run already ({some(holds)}): continue it with `--resume auto`, "
            f"{elsewhere}"
        )
    if holds and (longer := [text for key, text in changes if matches(key, LENGTH)]):
        warnings.warn(
            f"{folder} is continued with another length: {some(longer)}; a learning-rate schedule "
            "that ends with the run now ends there",
            stacklevel=4,
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECIPE, recipe | version_record())


def check_format(folder: Path, record: dict[str, Any]) -> None:
    """Raise ValueError if ``folder`` was made by a version whose records differ from ours."""
    if version := other_version(record):
        raise ValueError(
            f"{folder} was made by ovlt {version}, and this is {__version__}, whose recipes have "
            "other keys: finish that run with its own version, delete the folder, or give another "
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
