"""Rows of JSON in any layout: a line each, one list, objects one after the other; any encoding."""

from __future__ import annotations

import codecs
import json
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from ovlt.data.json_stream import json_list, json_objects
from ovlt.data.row_table import BadRow, RowTable, Stamp
from ovlt.system.scratch import Scratch

# Columns that a row of questions or conversations has, and a wrapper of rows has not.
_OF_ROWS = {"problem", "question", "query", "prompt", "messages", "conversations", "instruction"}
# Bytes of a first line that are looked at: that of an object, in which images may lie, or a list.
_FIRST_LINE, _FIRST_LIST = 1 << 26, 1 << 16
# What starts a file that a Windows program wrote. UTF-32 first: its mark begins like UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class LinesTable(RowTable):
    """One row per line (JSONL). The place of a row is the offset of its line in bytes."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp = Stamp(path)

    def rows(self) -> Iterator[tuple[int, object]]:
        """Implement ``RowTable.rows``; a broken line is a BadRow."""
        with self.path.open("rb") as lines:  # bytes: broken UTF-8 is one bad row, not the end
            at = 0
            for line in lines:
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    yield at, parse_line(line)
                at += len(line)

    def read(self, place: int) -> object:
        """Implement ``RowTable.read``."""
        self._stamp.check()
        with self.path.open("rb") as lines:
            lines.seek(place)
            return parse_line(lines.readline())


class SpooledTable(RowTable):
    """Rows that can only be read in order; if one is needed again, all are put into a scratch file.

    The place of a row is its number.
    """

    def __init__(self, path: Path, items: Callable[[], Iterator[object]]):
        self.path = path
        self._items = items
        self._stamp = Stamp(path)
        self._lock = threading.Lock()
        self._scratch: Scratch | None = None
        self._ends = array("Q", [0])  # where in it each row ends, after a 0

    def rows(self) -> Iterator[tuple[int, object]]:
        """Implement ``RowTable.rows``."""
        yield from enumerate(self._items())

    def read(self, place: int) -> object:
        """Implement ``RowTable.read``."""
        with self._lock:
            if self._scratch is None:
                self._stamp.check()
                scratch = Scratch()
                for item in self._items():
                    text = "null" if isinstance(item, BadRow) else json.dumps(item)
                    piece = scratch.put(text.encode("ascii"))
                    self._ends.append(piece.at + piece.size)
                self._scratch = scratch
        start, end = self._ends[place], self._ends[place + 1]
        return parse_line(self._scratch.read(start, end - start))


def parse_line(line: bytes) -> object:
    """Return the value on a line of JSONL, or the BadRow that it is."""
    try:
        return json.loads(line, object_pairs_hook=_without_repeats)
    except BadRow as bad:
        return bad
    except (ValueError, RecursionError):  # broken JSON or UTF-8, or nested too deep
        return BadRow("line is not valid JSON")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"the key '{twice[:80]}' appears twice in an object")
    return result


def json_table(path: Path, head: bytes) -> RowTable:
    """Return the table in a file of JSON, whatever its layout; ``head`` is how the file starts."""
    mark, encoding = next(((m, e) for m, e in MARKS if head.startswith(m)), (b"", "utf-8"))
    if encoding in ("utf-16", "utf-32"):
        return SpooledTable(path, lambda: _recoded_rows(path, encoding))
    text = head.removeprefix(mark).lstrip()
    # A list is often one line, as long as the file; a line that is itself a list is short.
    most = _FIRST_LIST if text.startswith(b"[") else _FIRST_LINE
    with path.open("rb") as file:
        file.seek(head.index(text) if text else 0)
        first = file.readline(most)
        more = file.readline(_FIRST_LIST)
        while more and not more.strip():
            more = file.readline(_FIRST_LIST)
    return _table_like(path, first, more)


def _table_like(path: Path, first: bytes, more: bytes) -> RowTable:
    """Decide by the first line, and whether there is a second, how the rows are laid out."""
    value = parse_line(first)
    whole = not isinstance(value, BadRow)
    if first.startswith(b"["):
        if whole and more.lstrip()[:1] in (b"[", b"{"):  # lines, of which the first is no row
            return LinesTable(path)
        return SpooledTable(path, lambda: json_list(path))
    opens = first.rstrip()[-1:] in (b"{", b"[", b",") and not whole
    if first.startswith(b"{") and (opens or (not whole and path.suffix != ".jsonl")):
        return SpooledTable(path, lambda: _objects(path))
    if whole and not more and isinstance(value, dict):
        _refuse_wrapped(path, cast("dict[str, object]", value))
    return LinesTable(path)


def _objects(path: Path) -> Iterator[object]:
    """Yield objects that stand one after the other, each over any number of lines."""
    rows = json_objects(path)
    first, second = next(rows, None), next(rows, None)
    if second is None and isinstance(first, dict):
        _refuse_wrapped(path, cast("dict[str, object]", first))
    yield from (row for row in (first, second) if row is not None)
    yield from rows


def _refuse_wrapped(path: Path, value: dict[str, object]) -> None:
    """Raise ValueError if the only object of a file is no row, but holds rows or columns."""
    inner, names = list(value.values()), {name.casefold() for name in value}
    columns = all(isinstance(i, list) for i in inner) and names & {"problem", "question", "answer"}
    holds_rows = not _OF_ROWS & names and any(
        items and all(isinstance(item, dict) for item in items)
        for items in (list(i.values()) if isinstance(i, dict) else i for i in inner)
        if isinstance(items, list)
    )
    if columns or holds_rows:
        keys = ", ".join(f"'{name[:40]}'" for name in list(value)[:8])
        raise ValueError(
            f"{path} must hold a JSON list of rows, or one object per row; it holds a single "
            f"object with the keys {keys}: write the rows in it as a list, or one on each line"
        )


def _recoded_rows(path: Path, encoding: str) -> Iterator[object]:
    """Yield the rows of a file in UTF-16 or UTF-32."""
    try:
        with path.open(encoding=encoding) as file:
            start = file.read(1)
            while start.isspace() or start == "\ufeff":
                start = file.read(1)
            if start == "[":  # such files come from a desk, not from a dataset: they are small
                rows = json.loads(start + file.read(), object_pairs_hook=_without_repeats)
                yield from rows
                return
            for number, line in enumerate(file):
                text = (start if not number else "") + line
                if text.strip():
                    yield parse_line(text.encode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON in {encoding.upper()}: {error}") from None
