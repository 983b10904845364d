"""Rows of parquet and Arrow files, a batch at a time, and single rows of them again."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ArrowException, ipc
from pyarrow.parquet import FileMetaData, ParquetFile, ParquetWriter

from ovlt.data.row_table import RowTable, Stamp
from ovlt.system.files import locked, written_whole
from ovlt.system.scratch import scratch_folder

_BATCH_ROWS = 64  # rows decoded at once: a photograph may take a megabyte
# A row group is read whole for one of its rows. A file with larger ones is written anew, once, with
# small ones: pyarrow's default is a million rows, and one image would cost gigabytes.
_LARGE_GROUP, _SMALL_GROUP = 32 << 20, 4 << 20
_MANY_ROWS = 256  # equal images are stored once, so bytes on disk do not tell the size of a group
_HELD_GROUPS = 32 << 20  # bytes of groups that stay in memory: rows that follow share theirs
FAULTS = (ArrowException, OSError, UnicodeDecodeError)


class ParquetTable(RowTable):
    """A parquet file. The place of a row is its number."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp = Stamp(path)
        self._groups: _Groups | None = None
        self._lock = threading.Lock()

    def rows(self) -> Iterator[tuple[int, object]]:
        """Implement ``RowTable.rows``."""
        yield from enumerate(read_columns(self.path))

    def read(self, place: int) -> object:
        """Implement ``RowTable.read``."""
        self._stamp.check()
        with self._lock:
            if self._groups is None:
                self._groups = _Groups(_with_small_groups(self.path))
        try:
            return self._groups.row(place)
        except FAULTS as error:
            raise ValueError(f"{self.path} is not a readable parquet file: {error}") from None


class _Groups:
    """The row groups of a file, some of them in memory."""

    def __init__(self, path: Path):
        self.path = path
        with ParquetFile(path) as file:
            self.metadata: FileMetaData = file.metadata
        sizes = [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def row(self, place: int) -> object:
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        group = _HELD.get((self.path, number), lambda: self._read(number))
        return group.slice(place - int(self.starts[number]), 1).to_pylist()[0]

    def _read(self, number: int) -> pa.Table:
        with ParquetFile(self.path, metadata=self.metadata, pre_buffer=False) as file:
            return file.read_row_group(number, use_threads=False)


class _HeldGroups:
    """The row groups that were used last, of all files together."""

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._groups: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._bytes = 0  # of them all: asking each table again takes longer than reading one
        self._lock = threading.Lock()

    def get(self, key: tuple[Path, int], read: Callable[[], pa.Table]) -> pa.Table:
        """Return a group, read if it is not held. One thread reads at a time."""
        with self._lock:
            if key not in self._groups:
                self._groups[key] = read()
                self._bytes += self._groups[key].nbytes
                while len(self._groups) > 1 and self._bytes > self.most_bytes:
                    self._bytes -= self._groups.popitem(last=False)[1].nbytes
            self._groups.move_to_end(key)
            return self._groups[key]


_HELD = _HeldGroups(_HELD_GROUPS)


def _with_small_groups(path: Path) -> Path:
    """Return the file, or a copy of it in the scratch folder if its row groups are large.

    The processes of a machine share the copy, and so do later runs.
    """
    with ParquetFile(path) as file:
        metadata = file.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if all(g.total_byte_size <= _LARGE_GROUP and g.num_rows <= _MANY_ROWS for g in groups):
        return path
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode(
        "utf-8", "surrogateescape"
    )
    folder = scratch_folder()
    copy = folder / f"{hashlib.blake2b(key, digest_size=12).hexdigest()}.parquet"
    try:
        with locked(folder / f"{copy.stem}.lock"):
            if not copy.is_file():
                with written_whole(copy) as temporary:
                    _write_small_groups(path, temporary)
    except OSError as error:
        raise ValueError(
            f"{path} packs many images in one row group, so it is unpacked in {folder}, which "
            f"failed ({error}): make room there, or name another folder in OVLT_CACHE"
        ) from None
    return copy


def _write_small_groups(path: Path, copy: Path) -> None:
    with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        schema = file.schema_arrow
        with ParquetWriter(copy, schema, compression="none", write_statistics=False) as writer:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                count = max(1, min(_BATCH_ROWS, _SMALL_GROUP * len(batch) // max(1, batch.nbytes)))
                for at in range(0, len(batch), count):
                    writer.write_batch(batch.slice(at, count))


class ArrowTable(RowTable):
    """An Arrow file, a stream of batches (as ``datasets`` writes) or a file of them (Feather).

    The place of a row is its number. Each batch is mapped anew, so that pages of the file that
    were read do not stay in memory.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stamp = Stamp(path)
        self._is_file = path.open("rb").read(6) == b"ARROW1"
        try:
            self._schema, self._offsets, counts = self._index()
        except FAULTS as error:
            raise ValueError(f"{path} is not a readable Arrow file: {error}") from None
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._schema.names)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self) -> Iterator[tuple[int, object]]:
        """Implement ``RowTable.rows``."""
        for number in range(len(self._offsets)):
            start, batch = int(self.starts[number]), self._batch(number)
            for at in range(0, len(batch), _BATCH_ROWS):
                values = batch.slice(at, _BATCH_ROWS).to_pylist()
                yield from enumerate(values, start + at)

    def read(self, place: int) -> object:
        """Implement ``RowTable.read``."""
        self._stamp.check()
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self._batch(number).slice(place - int(self.starts[number]), 1).to_pylist()[0]

    def _index(self) -> tuple[pa.Schema, Sequence[int], list[int]]:
        """Return the schema, and where each batch lies and how many rows it has."""
        with pa.memory_map(str(self.path)) as source:
            if self._is_file:
                reader = ipc.open_file(source)
                counts = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
                return reader.schema, range(len(counts)), counts
            stream = ipc.open_stream(source)
            offsets, counts = [], []
            while True:
                at = source.tell()
                try:
                    counts.append(stream.read_next_batch().num_rows)
                except StopIteration:
                    return stream.schema, offsets, counts
                offsets.append(at)

    def _batch(self, number: int) -> pa.RecordBatch:
        try:
            with pa.memory_map(str(self.path)) as source:
                if self._is_file:
                    return ipc.open_file(source).get_batch(number)
                source.seek(self._offsets[number])
                return ipc.read_record_batch(ipc.read_message(source), self._schema)
        except FAULTS as error:
            raise ValueError(f"{self.path} is not a readable Arrow file: {error}") from None


def read_columns(path: Path, columns: Sequence[str] | None = None) -> Iterator[object]:
    """Yield the rows of a parquet file, of all columns or of some. Raises ValueError."""
    try:
        # The default buffering would hold a whole row group, perhaps thousands of images, twice.
        # This way only a page is held: up to 1,024 images, as pyarrow writes them.
        with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            chosen = None if columns is None else list(columns)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=chosen):
                yield from batch.to_pylist()
    except FAULTS as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from None


def json_value(value: object) -> object:
    """Return a cell as JSON can hold it: times and numbers without a JSON type as text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)
