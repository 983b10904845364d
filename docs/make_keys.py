"""``python docs/make_keys.py``: write docs/keys.md from the configuration.

The page is a function of ``ovlt/config``; a test fails if the two disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ovlt.__main__ import COMMANDS
from ovlt.config import Recipe
from ovlt.config.load import table_of

PAGE = Path(__file__).with_name("keys.md")
HEAD = """\
# Every key

A recipe is one TOML file. This page lists all its tables and keys; `python docs/make_keys.py`
writes it from the configuration. `ovlt COMMAND --help` prints the same for one command. How recipes
are read, merged and overridden is in [Recipes](recipes.md).
"""
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def page() -> str:
    """Return the text of keys.md."""
    return "\n".join([HEAD, *(line for name in Recipe.model_fields for line in section(name))])


def section(name: str) -> Iterator[str]:
    """Yield the lines of one top-level table, its tables included."""
    readers = [f"`ovlt {command}`" for command, c in COMMANDS.items() if name in c.tables]
    yield f"## `[{name}]`\n"
    yield from table(Recipe.model_fields[name].annotation, name, readers)


def table(model: Any, path: str, readers: list[str]) -> Iterator[str]:
    """Yield description and keys of a table, then its inner tables."""
    yield f"{plain(model.__doc__)}\n"
    if readers:
        yield f"Read by {', '.join(readers)}.\n"
    inner: list[tuple[str, Any]] = []
    rows = []
    for key, info in model.model_fields.items():
        kind = table_of(info)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind is info.annotation:
                inner.append((f"[{path}.{key}]", kind))
                continue
            inner.append((f"[[{path}.{key}]]", kind))
        sentence = plain(info.description or "")
        rows.append(f"| `{key}` | {default(info)} | {values(info)} | {sentence} |")
    if rows:
        yield "| key | default | values | meaning |\n|---|---|---|---|"
        yield from rows
        yield ""
    for title, kind in inner:
        yield f"### `{title}`\n"
        yield from table(kind, title.strip("[]"), [])


def default(info: FieldInfo) -> str:
    """Return a default as JSON, which is near to TOML; long texts are cut."""
    value = info.default
    if value is None or (isinstance(value, tuple) and value and isinstance(value[0], dict)):
        return ""
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"`{text}`".replace("|", "\\|")


def values(info: FieldInfo) -> str:
    """Return what a key takes: the choices, or the type with its limits."""
    kind = info.annotation
    if get_origin(kind) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(kind))
    limits = [
        f"{SIGNS[name]} {value:g}"
        for item in info.metadata
        for name, value in vars_of(item).items()
        if name in SIGNS and value is not None
    ]
    return ", ".join([type_name(kind), *limits])


def vars_of(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in SIGNS if hasattr(item, name)}


def type_name(kind: Any) -> str:
    """Name a type as a reader of TOML knows it."""
    origin, items = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_name(items[0])
    if origin in (Union, UnionType):
        return type_name(next(item for item in items if item is not type(None)))
    if origin is tuple:
        return "list of tables" if is_table(items[0]) else f"list of {type_name(items[0])}"
    if origin is Literal:
        return " ".join(f"`{choice}`" for choice in items)
    if origin is dict or kind is dict:
        return "table"
    return {bool: "true or false", int: "integer", float: "number", str: "text"}[kind]


def is_table(kind: Any) -> bool:
    return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))


def plain(text: str) -> str:
    """Escape what Markdown would read as HTML or as a column."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
