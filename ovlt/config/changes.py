"""In what two recipes differ, and which differences a continued run may have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

# Recipe keys (shell patterns) in which a resumed run may differ from the run it continues: where it
# is kept, what is shown of it, how fast it is fed, how often it is saved ...
MAY_CHANGE = (
    "run.folder",
    "run.resume",
    "run.tensorboard",
    "run.wandb",
    "data.workers",
    "*.reward.workers",
    "*.title",
    "*.save_every",
    "*.log_groups",
)
# ... and how long it goes on. This moves schedules that end with the run, so it is said aloud.
LENGTH = ("*.steps", "*.epochs")


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, "key was A, is B") of all that differs between two recipes, or parts of them."""
    before, now = _flat(before), _flat(now)

    def shown(values: Mapping[str, Any], key: str) -> str:
        return json.dumps(values[key]) if key in values else "absent"

    return [
        (key, f"{key} was {shown(before, key)}, is {shown(now, key)}")
        for key in sorted(before.keys() | now.keys())
        if shown(before, key) != shown(now, key)
    ]


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
