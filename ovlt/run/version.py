"""Which version of ovlt wrote a record in a run folder. Light: no torch."""

from __future__ import annotations

from typing import Any

from ovlt import __version__

# What the records in a run folder look like (recipe.json, cycle.json); 2: recipes with the tables
# [engine] and [reward]; 1 (ovlt 0.1) had no such key.
FORMAT = 2


def version_record() -> dict[str, Any]:
    """Return the version fields of a record."""
    return {"ovlt": __version__, "format": FORMAT}


def without_version(record: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe in a record."""
    return {key: value for key, value in record.items() if key not in version_record()}


def other_version(record: dict[str, Any]) -> str:
    """Return the version that wrote a record in another format than ours; empty if it is ours."""
    return "" if record.get("format") == FORMAT else str(record.get("ovlt", "0.1"))
