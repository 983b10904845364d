"""Files and folders that are never seen half written, and locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file: after a kill it has the old content or the new; on disk when this returns."""
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
    """Replace a file by a value as JSON, as ``write_whole`` does."""
    write_whole(path, json.dumps(value).encode("utf-8"))


def swap_folder(temporary: Path, final: Path) -> None:
    """Give a complete folder its name, in place of one that has it, and put that on disk.

    After a kill in between, ``final`` is missing or complete. Files must be on disk already.
    """
    sync_folder(temporary)
    old = None
    if final.exists():
        old = temporary.with_name(f"{temporary.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    sync_folder(final.parent)
    if old is not None:
        shutil.rmtree(old)


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, patience: float = float("inf")) -> Iterator[None]:
    """Hold a lock on the file ``path``, which is created if needed; wait if another process has it.

    Processes that are started inside the block (``launch.py``) keep the lock too, so a command that
    outlives its killed parent is waited for. The system frees the lock when the last of them ends.
    Raises TimeoutError, which names the other process, after ``patience`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        deadline, announced = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} is locked by {_holder(file)}") from None
            except OSError as error:  # some network file systems have no locks
                print(f"{path}: no lock can be had ({error.strerror}); going on", flush=True)
                break
            if not announced:
                print(f"{_holder(file)} is at work in {path.parent}: waiting for it", flush=True)
            announced = True
            time.sleep(0.2)
        file.truncate(0)
        words = " ".join(sys.argv[:8])
        file.write(f"process {os.getpid()} on {socket.gethostname()} ({words[:200]})")
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    """Return what the holder of a lock wrote about itself."""
    file.seek(0)
    return file.read(400) or "another process"


def read_json(path: Path) -> Any:
    """Read a file of ours. Raises ValueError, naming the file, if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it or restore it") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file of ours that holds a JSON object. Raises ValueError, naming the file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object): delete it or restore it")
    return cast("dict[str, Any]", value)
