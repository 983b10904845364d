"""Files: never seen half written, even after a kill; held by one process; counted unread."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file too large for ``write_whole``.

    What the block writes there replaces ``path`` when the block ends; if the block fails, ``path``
    stays as it was and nothing is left beside it.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, and on disk when this returns."""
    write_whole(path, json.dumps(value).encode("utf-8"))


@contextlib.contextmanager
def held(path: Path, patience: float = float("inf")) -> Iterator[None]:
    """Hold the file ``path``, made if it is not there; whoever else holds it is waited for.

    Commands started meanwhile (``launch.py``) hold it too, so one that is cut off by a kill of
    its parent is waited for. The system lets go of it when the last of them ends, however it ends.
    Raises TimeoutError after ``patience`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        deadline, said = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} is held by another process") from None
            if not said:
                print(f"another process is at work in {path.parent}: waiting for it", flush=True)
            said = True
            time.sleep(0.2)
        yield


def read_json(path: Path) -> Any:
    """The value in a file of ours. Raises ValueError, naming the file, if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it or restore it") from error


def num_rows(file: Path) -> int:
    """Rows of a data file, without reading them where the file says; 0 where it is not there."""
    if file.suffix == ".parquet" and file.is_file():
        from pyarrow import parquet

        return int(parquet.read_metadata(file).num_rows)
    if file.suffix == ".jsonl" and file.is_file():
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    if file.suffix == ".json" and file.is_file():
        return len(json.loads(file.read_text(encoding="utf-8")))
    return 0
