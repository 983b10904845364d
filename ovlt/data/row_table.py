"""A file of rows: read in order, and one row again when it is needed.

Whoever reads a long file keeps the places of its rows, not the bytes of its images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path


class BadRow(ValueError):
    """Why a row is left out: a reason short enough to count by, and ``detail`` of this row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


class RowTable(ABC):
    """The rows of one file.

    Attributes:
        path: the file; paths of images are relative to its folder.
    """

    path: Path

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, object]]:
        """Yield (place, row) in the order of the file; a row should be a dict, but check it.

        What cannot be read comes as a BadRow. Raises ValueError if the file cannot be read.
        """

    @abstractmethod
    def read(self, place: int) -> object:
        """Return the row at a place once more; threads may call it at once.

        Raises ValueError if the file has changed since it was opened.
        """


class Stamp:
    """What tells whether a file has changed: its size and time."""

    def __init__(self, path: Path):
        self.path = path
        self._state = self._now()

    def _now(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Raise ValueError if the file is another one than it was."""
        try:
            same = self._now() == self._state
        except OSError:
            same = False
        if not same:
            raise ValueError(f"{self.path} changed while it was in use: start again")
