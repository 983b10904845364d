"""Completion of commands, recipes and keys in bash and zsh, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Literal, get_args, get_origin

import shtab

from ovlt.config import Recipe
from ovlt.config.load import leaves

SHELLS = ("bash", "zsh")


def script(shell: str, commands: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]) -> str:
    """Return the completion script; ``commands`` maps a name to summary, tables and own options."""
    parser = argparse.ArgumentParser(prog="ovlt")
    subparsers = parser.add_subparsers()
    for name, (summary, tables, options) in commands.items():
        command = subparsers.add_parser(name, help=_escaped(summary))
        files = command.add_argument("recipe", nargs="*", help="recipe, TOML")
        files.complete = shtab.FILE  # type: ignore[attr-defined]
        for option in ("--smoke", *options):
            command.add_argument(option)
        for table in tables:
            annotation = Recipe.model_fields[table].annotation
            assert annotation is not None
            for key, info in leaves(annotation, f"{table}."):
                kind = info.annotation
                choices = get_args(kind) if get_origin(kind) is Literal else None
                about = _escaped(info.description or "")
                command.add_argument(f"--{key}", choices=choices, help=about)
    return shtab.complete(parser, shell)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # argparse formats help texts
