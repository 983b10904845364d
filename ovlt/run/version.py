"""Which version of ovlt wrote a record in a run folder. Light: no torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ovlt import __version__
from ovlt.config import Recipe
from ovlt.config.changes import MAY_CHANGE, changes_between, matches
from ovlt.system.files import read_object

# What the records in a run folder look like (recipe.json, cycle.json); 2: recipes with the tables
# [engine] and [reward]; 1 (ovlt 0.1) had no such key.
FORMAT = 2


def version_record() -> dict[str, Any]:
    """Return the version fields of a record."""
    return {"ovlt": __version__, "format": FORMAT}


def without_version(record: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe in a record."""
    return {key: value for key, value in record.items() if key not in version_record()}


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the values of keys that an earlier version of this format did not know."""
    return Recipe().model_dump(mode="json")


def other_version(record: dict[str, Any]) -> str:
    """Return the version that wrote a record in another format than ours; empty if it is ours."""
    return "" if record.get("format") == FORMAT else str(record.get("ovlt", "0.1"))


def check_format(folder: Path, record: dict[str, Any]) -> None:
    """Raise ValueError if ``folder`` was made by a version whose records differ from ours."""
    if version := other_version(record):
        raise ValueError(
            f"{folder} was made by ovlt {version}, and this is {__version__}, whose recipes have "
            "other keys: finish that run with its own version, delete the folder, or give another "
            "--run.folder"
        )


def require_same_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Raise ValueError if a stage that is done, and will not be made again, had another recipe."""
    earlier = read_object(folder / "recipe.json")
    check_format(folder, earlier)
    changes = changes_between(without_version(earlier), recipe, defaults())
    if texts := [text for key, text in changes if not matches(key, MAY_CHANGE)]:
        raise ValueError(
            f"{folder} is done, with another recipe: {'; '.join(texts[:3])}: give the former "
            "values, delete that folder, or give another --run.folder"
        )
