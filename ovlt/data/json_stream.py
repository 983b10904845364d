"""Large JSON files item by item: question files of a gigabyte hold one list or one object.

The standard decoder takes one item at a time out of a window of the text, so memory stays that of
the largest item and the window.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_WINDOW = 1 << 20  # characters read at a time
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


def json_list(path: str | Path, key: str = "") -> Iterator[Any]:
    """The items of the list that the file holds, or that its top-level object holds under ``key``.

    Raises ValueError: no valid JSON, or no such list (says what stands there).
    """
    path = Path(path)
    with _text(path) as text:
        if not key:
            if text.peek() != "[":
                raise ValueError(f"{path} must hold a JSON list of rows")
            yield from text.items()
            return
        seen = []
        for name in text.names():
            seen.append(name)
            if name == key and text.peek() == "[":
                yield from text.items()
                return  # what follows the list is not read
            text.value()
        raise ValueError(f"{path} has no list '{key}'; its keys are {', '.join(seen) or 'none'}")


def json_members(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of the object that the file holds. Raises ValueError as ``json_list`` does."""
    path = Path(path)
    with _text(path) as text:
        for name in text.names():
            yield name, text.value()


@contextmanager
def _text(path: Path) -> Iterator[_Text]:
    """The text of the file; its faults become sentences with the file's name."""
    try:
        with path.open(encoding="utf-8") as file:
            yield _Text(path, file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


class _Text:
    """A window that moves over the text of one file."""

    def __init__(self, path: Path, file: TextIO):
        self.path, self.file = path, file
        self.window, self.at, self.ended = "", 0, False
        self.before = 0  # characters that have left the window, for messages

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.window):
                if self.window[self.at] not in _SPACE:
                    return self.window[self.at]
                self.at += 1
            if self.ended:
                return ""
            self._read()

    def value(self) -> Any:
        """The value that starts here."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.window, self.at)
                if end < len(self.window) or self.ended:  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self._broken(error.msg) from None
            self._read()

    def items(self) -> Iterator[Any]:
        """The items of the list that starts here."""
        self._take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """The names of the object that starts here; the caller reads the value after each."""
        if self.peek() != "{":
            raise ValueError(f"{self.path} must hold a JSON object of named records")
        self._take("{")
        if self.peek() == "}":
            return
        while True:
            name = self.value()
            self._take(":")
            yield str(name)
            if self._take(",}") == "}":
                return

    def _take(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            raise self._broken(f"expecting one of {' '.join(allowed)}")
        self.at += 1
        return found

    def _read(self) -> None:
        # Doubled each time, so that one item of any size costs a few attempts and not hundreds.
        more = self.file.read(max(_WINDOW, len(self.window) - self.at))
        self.ended = not more
        self.before += self.at
        self.window, self.at = self.window[self.at :] + more, 0

    def _broken(self, what: str) -> json.JSONDecodeError:
        error = json.JSONDecodeError(what, "", 0)
        error.args = (f"{what} at character {self.before + self.at}",)
        return error
