"""Read JSON files item by item: question files of a gigabyte hold one list or one object.

``ijson`` splits the file into events (a key, a number, the start of a list ...) and one item at a
time is built from them, so memory stays that of the largest item. Two things are checked that ijson
does not check: nesting deeper than ``MAX_DEPTH``, and a key that an object holds twice.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ijson

MAX_DEPTH = 500  # lists and objects within each other; the datasets stay below 20
_WINDOW = 1 << 16  # bytes read at a time


def json_list(path: str | Path, key: str = "") -> Iterator[object]:
    """Yield the items of the list in a file, or of the list under ``key`` of its top-level object.

    Raises ValueError: the file is not valid JSON, or has no such list (the message says what it
    has instead).
    """
    with _open(Path(path)) as file:
        if not key:
            if file.next_event() != "start_array":
                raise _WrongShape(f"{path} must hold a JSON list of rows")
            yield from file.items()
            file.expect_end()
            return
        names = []
        for name in file.names():
            names.append(name)
            if file.next_event() == "start_array" and name == key:
                yield from file.items()
                return  # what follows the list is not read
            file.build()
        has = ", ".join(names) or "none"
        raise _WrongShape(f"{path} has no list '{key}'; its keys are {has}")


def json_objects(path: str | Path) -> Iterator[object]:
    """Yield the values of a file that stand one after the other, each over any number of lines.

    Raises ValueError if one is not valid JSON.
    """
    with _open(Path(path), multiple_values=True) as file:
        for number, (event, value) in enumerate(file.events):
            file.event, file.value, file.place = event, value, f"in object {number}"
            yield file.build()


def json_members(path: str | Path) -> Iterator[tuple[str, object]]:
    """Yield (key, value) of the object in a file. Raises ValueError as ``json_list`` does."""
    with _open(Path(path)) as file:
        for name in file.names():
            file.next_event()
            yield name, file.build()
        file.expect_end()


def json_object(path: str | Path) -> dict[str, object]:
    """Return the object in a small file, whole. Raises ValueError as ``json_list`` does."""
    return dict(json_members(path))


class _WrongShape(ValueError):
    """Valid JSON, but not what was expected; the message is complete."""


@contextmanager
def _open(path: Path, *, multiple_values: bool = False) -> Iterator[_JsonFile]:
    """Open a file for reading; every fault of its text becomes a ValueError that names the file."""
    with path.open("rb") as stream:
        if stream.read(3) != codecs.BOM_UTF8:  # which Windows programs write first
            stream.seek(0)
        # use_float: a number beyond 64 bits ends in an error. Without it, ijson 3.6's C parser can
        # crash at an integer of more digits than Python converts.
        events = ijson.basic_parse(
            stream, buf_size=_WINDOW, use_float=True, multiple_values=multiple_values
        )
        file = _JsonFile(path, events)
        try:
            yield file
        except _WrongShape:
            raise
        except (ijson.JSONError, ValueError) as error:  # ValueError: UTF-8, and the checks here
            # yajl draws the place below its message, and some messages are the repr of bytes
            reason = str(error).removeprefix("b'").split("\\n")[0].split("\n")[0].strip()
            raise ValueError(f"{path} is not valid JSON: {file.place}: {reason}") from None


class _JsonFile:
    """The events of one file, from which values are built."""

    def __init__(self, path: Path, events: Iterator[tuple[str, Any]]):
        self.path, self.events = path, events
        self.event, self.value = "", None  # the last event that `next_event` took
        self.place = "at its start"  # for messages

    def next_event(self) -> str:
        """Take the next event and return its name."""
        self.event, self.value = next(self.events)
        return self.event

    def items(self) -> Iterator[object]:
        """Yield the items of the list whose start was taken."""
        number = 0
        self.place = "in item 0"
        while self.next_event() != "end_array":
            yield self.build()
            number += 1
            self.place = f"in item {number}"

    def names(self) -> Iterator[str]:
        """Yield the keys of the top-level object; the caller takes the value after each."""
        if self.next_event() != "start_map":
            raise _WrongShape(f"{self.path} must hold a JSON object of named records")
        seen: set[str] = set()
        while self.next_event() != "end_map":
            name = str(self.value)
            if name in seen:
                raise ValueError(f"the key '{name[:80]}' appears twice in an object")
            seen.add(name)
            self.place = f"under the key '{name[:80]}'"
            yield name

    def build(self) -> object:
        """Return the value that starts with the last event taken."""
        if self.event not in ("start_map", "start_array"):
            return self.value
        inner: Any = {} if self.event == "start_map" else []  # the container that is being filled
        key: str | None = "" if self.event == "start_map" else None  # None within a list
        outer: list[tuple[Any, str | None]] = []  # the containers around it
        for event, value in self.events:  # millions of them: the most frequent are tested first
            if event == "map_key":
                if value in inner:
                    raise ValueError(f"the key '{str(value)[:80]}' appears twice in an object")
                key = value
            elif event == "end_map" or event == "end_array":
                if not outer:
                    return inner
                inner, key = outer.pop()
            else:
                starts = event == "start_map" or event == "start_array"
                child = value if not starts else {} if event == "start_map" else []
                if key is None:
                    inner.append(child)
                else:
                    inner[key] = child
                if starts:
                    outer.append((inner, key))
                    if len(outer) >= MAX_DEPTH:
                        raise ValueError(f"nested deeper than {MAX_DEPTH} lists and objects")
                    inner, key = child, "" if event == "start_map" else None
        raise ValueError("it ends within a value")

    def expect_end(self) -> None:
        """Read on to the end, where nothing may follow."""
        self.place = "after its end"
        for event, _ in self.events:
            raise ValueError(f"unexpected {event}")
