"""Room on disk for what is read again and does not fit in memory."""

from __future__ import annotations

import os
import tempfile
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
    return tempfile.TemporaryFile(dir=scratch_folder())
