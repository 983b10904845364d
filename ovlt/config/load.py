"""Read a recipe: one TOML file, or several laid over each other, is one reproducible run.

``load_recipe`` reads the files, shrinks them if ``--smoke`` asks for that, lays
``--table.key=value`` over them, and answers an unknown key with the nearest name, or with the new
name of one that has moved. TOML because a recipe is read more often than it is written.
"""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ovlt.config import Recipe
from ovlt.config.foreign import same_here
from ovlt.config.places import recipe_path, recipes_folder
from ovlt.config.smoke_size import at_smoke_size
from ovlt.config.trees import merged

REPOSITORY = recipes_folder().parent  # in an installed wheel the folder ovlt/, which holds recipes/
SMOKE_RECIPE = recipes_folder() / "smoke.toml"

# Keys of older recipes, and where each is now.
MOVED = {
    "grpo.reward": "reward",
    "grpo.rollout.engine": "engine.backend",
    "grpo.rollout.dtype": "engine.dtype",
    "grpo.rollout.max_sequences": "engine.max_sequences",
    "grpo.rollout.gpu_memory": "engine.gpu_memory",
    "grpo.rollout.kv_cache_gib": "engine.kv_cache_gib",
    "grpo.rollout.max_mismatch": "engine.max_mismatch",
    "grpo.rollout.tensor_parallel": "distill.engine.tensor_parallel",  # or [evaluate.engine]
    "distill.tensor_parallel": "distill.engine.tensor_parallel",
    "distill.max_sequences": "distill.engine.max_sequences",
    "distill.gpu_memory": "distill.engine.gpu_memory",
}
GONE = {
    "demo.control_steps": "`ovlt cycle --controls=sft-only` is that control",
    "demo.rejection_prompts": "`ovlt cycle --controls=rejection` is that control",
    "demo.rejection_n": "`ovlt cycle --controls=rejection` is that control",
}


def load_recipe(
    paths: str | Path | Sequence[str | Path] | None = None,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
) -> Recipe:
    """Read recipes (TOML, or resolved ones in JSON) and lay ``table.key=value`` over them.

    Later files override earlier ones: tables are merged key by key, values and lists are
    replaced. Values of ``overrides`` are read as TOML if they
    parse, else as a bare string, so ``--run.seed=1``, ``--sft.optim.lr=1e-3`` and
    ``--sft.start=runs/x`` all do what they say. ``smoke`` first shrinks the recipe to the size of
    recipes/smoke.toml; ``smoke_size.py`` says which keys that takes.

    Raises ValueError: missing file, bad TOML, unknown key (names the nearest), impossible value.
    """
    if paths is None or isinstance(paths, str | Path):
        paths = [SMOKE_RECIPE if paths is None else paths]
    files = [Path(path) for path in paths] or [SMOKE_RECIPE]
    origin = " + ".join(map(str, files))
    tree = functools.reduce(merged, map(_read, files))
    if smoke:
        recipe_from(tree, origin)  # otherwise a mistake in a key that smoke.toml replaces is hidden
        tree = at_smoke_size(tree, _read(SMOKE_RECIPE), files[-1].stem)
        origin += " --smoke"
    for text in overrides:
        _set(tree, text)
    return recipe_from(tree, origin)


def _read(path: Path) -> dict[str, Any]:
    path = recipe_path(path)
    if not path.is_file():
        known = sorted(p.name for p in recipes_folder().glob("*.toml"))
        raise ValueError(f"no recipe at {path}; ovlt has recipes/{{{', '.join(known)}}}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows write a mark first
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if path.suffix == ".json" and isinstance(tree, dict):  # the record of a stage
            tree = {key: value for key, value in tree.items() if key not in ("ovlt", "format")}
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # of TOML, JSON or UTF-8
        raise ValueError(f"{path} is not valid TOML (or JSON): {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold tables like [grpo], not a list or a single value")
    return tree


def recipe_from(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a tree of tables; see ``load_recipe`` for the errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_explain(error, origin)) from None


def _set(tree: dict[str, Any], text: str) -> None:
    key, separator, value = text.removeprefix("--").partition("=")
    if not separator or not key:
        raise ValueError(f"cannot read {text!r}: an override looks like --grpo.steps=20")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables, last = key.split(".")
    info = _fields_at(tables).get(last)
    if info is not None and info.annotation is str and not isinstance(parsed, str):
        parsed = value  # a folder may be called 7 or 2026-01-31
    if info is not None and info.default is None and value == "":
        parsed = None  # not set
    node = tree
    for table in tables:
        if node.get(table) is None:  # a record holds null for a table that is not set
            node[table] = {}
        node = node[table]
        if not isinstance(node, dict):
            raise ValueError(f"{key}: '{table}' is a value, not a table")
    node[last] = parsed


def _fields_at(location: Sequence[Any]) -> dict[str, FieldInfo]:
    """Return the fields of the table at a path of keys; none if there is no such table."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list of tables, which table_of has gone into
        info = getattr(model, "model_fields", {}).get(part)
        if info is None:
            return {}
        model = table_of(info)
    return getattr(model, "model_fields", {})


def table_of(info: FieldInfo) -> Any:
    """Return the type of a field; for a list of tables, the type of the table."""
    items = get_args(info.annotation)
    if get_origin(info.annotation) is tuple and isinstance(items[0], type):
        return items[0]
    return info.annotation


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that holds a value, as ``table.key``, in order."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for item in error.errors():
        location = tuple(item["loc"])
        name = ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            lines.append(_unknown(location, name))
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
    return f"{origin}: " + "; ".join(lines)


def _unknown(location: tuple[int | str, ...], name: str) -> str:
    """Say that there is no such key, and which one was meant."""
    if name in MOVED:
        return f"'{name}' has moved: it is '{MOVED[name]}' now"
    if name in GONE:
        return f"'{name}' is gone: {GONE[name]}"
    known = list(_fields_at(location[:-1]))
    near = [key for key, _ in leaves(Recipe) if key.split(".")[-1] == location[-1]]
    near.sort(key=lambda key: key.split(".")[0] != location[0])  # its own table first
    near = near or same_here(str(location[-1]), str(location[0]))
    near = near or difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown key '{name}'; {hint}"
