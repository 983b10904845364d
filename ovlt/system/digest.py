"""Digests that tell whether files hold what they held, at the cost of seconds."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

# Files up to this size are read whole (a core hashes some 900 MB/s); of longer ones the ends and
# evenly spaced blocks are, with the length. Rows that are added, lost, edited or put into another
# order change the length, or the footer of a parquet file.
WHOLE_BYTES = 1 << 30
_BLOCK, _BLOCKS = 1 << 20, 256
_READ = 1 << 22


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return a digest of parts, which cannot run into each other."""
    total = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def file_digest(path: Path, whole: int = WHOLE_BYTES) -> str:
    """Return a digest of a file; of more than ``whole`` bytes only its length and samples."""
    size, total = path.stat().st_size, blake2b(digest_size=16)
    total.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= whole:
            while data := file.read(_READ):
                total.update(data)
            return total.hexdigest()
        block = min(_BLOCK, max(1, whole // _BLOCKS))
        for number in range(_BLOCKS):
            file.seek((size - block) * number // (_BLOCKS - 1))
            total.update(file.read(block))
    return total.hexdigest()


def tree_digest(path: Path) -> str:
    """Return a digest of a file, or of every file below a folder with its name."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    total = sum(file.stat().st_size for file in files)
    whole = WHOLE_BYTES if total <= 4 * WHOLE_BYTES else WHOLE_BYTES // 16
    return digest_of(
        part for file in files for part in (str(file.relative_to(path)), file_digest(file, whole))
    )
