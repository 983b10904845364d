"""The words after a command: recipes, ``--smoke``, ``--table.key=value``; and ``--help``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from ovlt.config import Recipe
from ovlt.config.load import REPOSITORY, SMOKE_RECIPE, leaves, load_recipe, table_of

SMOKE_HELP = (
    "--smoke runs the recipe with the paths, sizes, budgets and rates of recipes/smoke.toml (a\n"
    "tiny model, a synthetic world), into runs/NAME-smoke; all that is method stays the recipe's."
)


def command_line(
    command: str, summary: str, tables: Sequence[str], argv: Sequence[str], *, resume: bool = False
) -> Recipe:
    """Read ``[RECIPE ...] [--smoke] [--table.key=value ...]``, the words after ``ovlt COMMAND``.

    ``--help`` prints the keys of ``tables`` and ends the process. ``resume``: the command knows
    ``--resume auto``. A mistake ends the process with one sentence and status 2, not a traceback.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(help_text(command, summary, tables, resume=resume))
        raise SystemExit(0)
    try:
        paths, overrides, smoke = split_words(argv)
        return load_recipe(paths, overrides, smoke=smoke)
    except ValueError as error:
        print(f"ovlt {command}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Sort the words of a command line into recipes, overrides (``--key=value``) and --smoke."""
    paths, overrides = [], []
    words = iter([word for word in argv if word != "--smoke"])
    for word in words:
        if not word.startswith("--"):
            paths.append(word)
            continue
        if "=" not in word:  # --key value
            word = f"{word}={next(words, '')}"
        overrides.append(word.replace("--resume=", "--run.resume=", 1))
    return paths, overrides, "--smoke" in argv


def help_text(command: str, summary: str, tables: Sequence[str], *, resume: bool = False) -> str:
    """Return the usage of a command and every key of ``tables`` with default and meaning."""
    lines = [
        f"usage: ovlt {command} [RECIPE.toml ...] [--smoke] [--table.key=value ...]"
        + " [--ranks=N] [--resume auto]" * resume,
        "",
        summary,
        "Several recipes are laid over each other, the last one on top.",
        SMOKE_HELP,
        f"Without a recipe: {SMOKE_RECIPE.relative_to(REPOSITORY)}. Keys and their defaults:",
    ]
    for name in tables:
        annotation = Recipe.model_fields[name].annotation
        assert annotation is not None
        lines += ["", f"[{name}] {annotation.__doc__}"]
        for key, info in leaves(annotation, f"{name}."):
            value = info.default
            value = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            line = f"{f'  --{key}={value}':<42} {info.description}"
            if get_origin(info.annotation) is Literal:
                line += f" One of: {' | '.join(map(str, get_args(info.annotation)))}."
            lines.append(line)
            item = table_of(info)
            if isinstance(item, type) and issubclass(item, BaseModel):
                lines += [f"    {k:<38} {i.description}" for k, i in leaves(item)]
    return "\n".join(lines)
