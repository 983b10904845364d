"""Read the columns of a benchmark's row, whose types differ between its releases."""

from __future__ import annotations

import ast

from ovlt.benchmarks.items import BenchmarkRow


def text_of(row: BenchmarkRow, column: str) -> str:
    """Return a column as text, "" if it is null or absent."""
    value = row.get(column)
    return "" if value is None else str(value)


def options_of(row: BenchmarkRow, column: str = "options") -> list[str]:
    """Return the options of a row: a list, null, or a list written as Python text.

    Raises ValueError on text that is no list. A nested list is one option, as it is in the file.
    """
    value = row.get(column)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"column {column!r} is no list: {str(row[column])[:80]!r}") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"column {column!r} is no list: {str(row[column])[:80]!r}")
    return [str(option) for option in value]


def letter(index: int) -> str:
    """Return the letter of an option: 0 -> A."""
    return chr(ord("A") + index)


def lettered(options: list[str], form: str) -> str:
    """Return one line per option; ``form`` is like "({}) {}", filled with letter and text."""
    return "\n".join(form.format(letter(i), option) for i, option in enumerate(options))


def option_at(options: list[str], answer: str) -> str | None:
    """Return the option that a letter of any case names; None if there is none."""
    name = answer.strip().upper()
    index = ord(name) - ord("A") if len(name) == 1 else -1
    return options[index] if 0 <= index < len(options) else None
