"""Room on disk for what is read again and does not fit in memory."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO


def scratch_folder() -> Path:
    """Return the folder for such files: OVLT_CACHE, else ovlt in the user's cache folder.

    If that cannot be written, the system's folder of temporary files. Raises ValueError if
    OVLT_CACHE itself cannot be written.
    """
    chosen = os.environ.get("OVLT_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(chosen) if chosen else Path(os.path.expanduser(cache)) / "ovlt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    if chosen:
        raise ValueError(f"OVLT_CACHE = {chosen} cannot be written: name a folder with room")
    return Path(tempfile.gettempdir())


def scratch_file() -> IO[bytes]:
    """Open a file without a name, which is gone when it is closed or the process ends."""
    return tempfile.TemporaryFile(dir=scratch_folder(), buffering=0)


class Scratch:
    """Bytes that are put aside: in memory while they are few, then in a scratch file."""

    def __init__(self, most_in_memory: int = 8 << 20):
        self._most = most_in_memory
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0

    def put(self, data: bytes) -> Piece:
        """Put bytes aside. One thread writes; any may read what was put aside before."""
        piece = Piece(self, self._size, len(data))
        self._size += len(data)
        if self._file is None:
            self._memory += data
            if self._size > self._most:
                self._file = scratch_file()
                self._file.write(self._memory)
                self._memory = bytearray()
        else:
            self._file.write(data)
        return piece

    def read(self, at: int, size: int) -> bytes:
        """Return bytes that were put aside."""
        if self._file is None:
            return bytes(self._memory[at : at + size])
        return os.pread(self._file.fileno(), size, at)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes put aside."""

    scratch: Scratch
    at: int
    size: int

    def read(self) -> bytes:
        """Return them."""
        return self.scratch.read(self.at, self.size)
