"""Recipes as trees of tables, before they are validated."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]  # tables and values as TOML or JSON has them


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Lay one tree over another: tables key by key; a value or a list replaces what was there.

    Keywords for a chat template are one value: those of another template are not for this one.
    """
    tree = dict(under)
    for key, value in over.items():
        below = tree.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        both = both and not key.endswith("chat_template_kwargs")
        tree[key] = merged(below, value) if both else copy.deepcopy(value)
    return tree
