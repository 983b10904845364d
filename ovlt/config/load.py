"""One recipe = one TOML file = one reproducible run.

``load_recipe`` reads the file, brings it to a small size where ``--smoke`` asks for that, lays
``--table.key=value`` over it, and answers an unknown key with the nearest name; ``command_line``
does so for a command. TOML because a recipe is read more often than it is written.
"""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ovlt.config import Recipe
from ovlt.config.smoke_size import at_smoke_size

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE_RECIPE = REPOSITORY / "recipes" / "smoke.toml"
SMOKE_HELP = (
    "--smoke runs the recipe with the paths, sizes, budgets and rates of recipes/smoke.toml (a\n"
    "tiny model, a synthetic world), into runs/NAME-smoke; all that is method stays the recipe's."
)


def load_recipe(
    path: str | Path | None = None, overrides: list[str] | None = None, *, smoke: bool = False
) -> Recipe:
    """Read a recipe, TOML or a resolved one in JSON, and lay ``table.key=value`` over it.

    Values are read as TOML where they parse, else as a bare string, so ``--run.seed=1``,
    ``--sft.optim.lr=1e-3`` and ``--sft.start=runs/x`` all do what they say. ``smoke`` brings the
    recipe to the size of recipes/smoke.toml first; ``smoke_size.py`` says which keys that takes.

    Raises ValueError: missing file, bad TOML, unknown key (names the nearest), impossible value.
    """
    path = Path(path) if path is not None else SMOKE_RECIPE
    tree = _read(path)
    if smoke:
        recipe_from(tree, str(path))  # else a mistake in a key that gives way would go unseen
        tree = at_smoke_size(tree, _read(SMOKE_RECIPE), path.stem)
    for text in overrides or []:
        _set(tree, text)
    return recipe_from(tree, f"{path} --smoke" if smoke else str(path))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(p.name for p in SMOKE_RECIPE.parent.glob("*.toml"))
        raise ValueError(f"no recipe at {path}; the repository has recipes/{{{', '.join(known)}}}")
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of TOML, JSON or UTF-8
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
    node = tree
    for table in tables:
        node = node.setdefault(table, {})
        if not isinstance(node, dict):
            raise ValueError(f"{key}: '{table}' is a value, not a table")
    node[last] = parsed


def _fields_at(location: Sequence[Any]) -> dict[str, FieldInfo]:
    """The fields of the table at a path of keys; none where there is no such table."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list of tables, which _table_of has gone into
        info = getattr(model, "model_fields", {}).get(part)
        if info is None:
            return {}
        model = _table_of(info)
    return getattr(model, "model_fields", {})


def _table_of(info: FieldInfo) -> Any:
    """What a field holds; of a list of tables, the table."""
    items = get_args(info.annotation)
    if get_origin(info.annotation) is tuple and isinstance(items[0], type):
        return items[0]
    return info.annotation


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that holds a value, as ``table.key``, in order."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for item in error.errors():
        location = tuple(item["loc"])
        name = ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            known = list(_fields_at(location[:-1]))
            near = [key for key, _ in _leaves(Recipe) if key.split(".")[-1] == location[-1]]
            near.sort(key=lambda key: key.split(".")[0] != location[0])  # its own table first
            near = near or difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown key '{name}'; {hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
    return f"{origin}: " + "; ".join(lines)


def command_line(
    command: str,
    summary: str,
    table: str,
    argv: list[str] | None = None,
    *,
    launcher: str = "torchrun",
) -> Recipe:
    """``python -m ovlt.COMMAND [RECIPE.toml] [--smoke] [--table.key=value ...]`` -> Recipe.

    ``--help`` lists the fields of the command's own table. A mistake ends the process with one
    sentence and status 2, not a traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(a in ("-h", "--help") for a in argv):
        print(_help(command, summary, table, launcher))
        raise SystemExit(0)
    path, overrides = None, []
    smoke = "--smoke" in argv
    for argument in _join_pairs([word for word in argv if word != "--smoke"]):
        if argument.startswith("--"):
            overrides.append(argument.replace("--resume=", "--run.resume=", 1))
        elif path is None:
            path = argument
        else:
            raise SystemExit(f"ovlt.{command}: more than one recipe given: {path}, {argument}")
    try:
        return load_recipe(path, overrides, smoke=smoke)
    except ValueError as error:
        print(f"ovlt.{command}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _join_pairs(argv: list[str]) -> list[str]:
    joined: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--") and "=" not in word:
            word = f"{word}={next(words, '')}"
        joined.append(word)
    return joined


def _help(command: str, summary: str, table: str, launcher: str) -> str:
    lines = [
        f"usage: {launcher} -m ovlt.{command} [RECIPE.toml] [--smoke] [--table.key=value ...]"
        + " [--resume auto]" * (launcher == "torchrun"),
        "",
        summary,
        SMOKE_HELP,
        f"Without a recipe: {SMOKE_RECIPE.relative_to(REPOSITORY)}. Keys and their defaults:",
    ]
    for name in (table, "run", "model", "data"):
        annotation = Recipe.model_fields[name].annotation
        assert annotation is not None
        lines += ["", f"[{name}] {annotation.__doc__}"]
        for key, info in _leaves(annotation, f"{name}."):
            value = info.default if isinstance(info.default, str) else json.dumps(info.default)
            line = f"{f'  --{key}={value}':<42} {info.description}"
            if get_origin(info.annotation) is Literal:
                line += f" One of: {' | '.join(get_args(info.annotation))}."
            lines.append(line)
            item = _table_of(info)
            if isinstance(item, type) and issubclass(item, BaseModel):
                lines += [f"    {k:<38} {i.description}" for k, i in _leaves(item)]
    return "\n".join(lines)
