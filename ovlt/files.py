"""How a file is written that a reader, or a kill, must never see half of."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """The old content or the new, never a part; on disk when this returns."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")  # ranks may write the same file
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
