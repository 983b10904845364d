"""Find a benchmark's rows: parquet, JSONL or JSON files of a folder, or a dataset of the Hub.

Rows come in the order of the files, with images as the file holds them (bytes, or a path); they are
read again whenever they are needed, so that memory holds a batch of them and not the benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ovlt.benchmarks.items import BenchmarkTask, Split
from ovlt.data.images import BadImage, ImageRef
from ovlt.data.tables import BadRow, read_table

_SUFFIXES = ("-*.parquet", ".parquet", ".jsonl", ".json")


class RowSource(Protocol):
    """Rows that can be read several times."""

    @property
    def origin(self) -> str:
        """What they are read from, for messages and the record of a result."""
        ...

    def rows(self) -> Iterator[tuple[dict[str, object], Path]]:
        """Yield each row and the folder to which its paths are relative. Raises ValueError."""
        ...


@dataclass(frozen=True)
class FileRows:
    """Rows of files."""

    files: tuple[Path, ...]

    @property
    def origin(self) -> str:
        return ", ".join(map(str, self.files))

    def rows(self) -> Iterator[tuple[dict[str, object], Path]]:
        for file in self.files:
            for row in records(file):
                if isinstance(row, BadRow) or not isinstance(row, dict):
                    raise ValueError(f"{file} holds a row that is no object")
                yield row, file.parent


def records(file: Path) -> Iterator[object]:
    """Yield the rows of a file; of a JSON object (MathVista's) its values, each with its key."""
    if file.suffix == ".json" and file.read_bytes()[:64].lstrip()[:1] == b"{":
        try:
            records = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from None
        for key, row in records.items():
            yield {"pid": key, **row} if isinstance(row, dict) else row
    else:
        yield from read_table(file)


@dataclass(frozen=True)
class HubRows:
    """Rows of a dataset of the Hub, downloaded or in the cache of ``datasets``."""

    hub: str
    configs: tuple[str, ...]
    split: str

    @property
    def origin(self) -> str:
        return f"{self.hub} ({', '.join(self.configs)}; {self.split})"

    def rows(self) -> Iterator[tuple[dict[str, object], Path]]:
        try:  # optional: files need none of it
            from datasets import Image, load_dataset
        except ImportError:
            raise ValueError(
                f"reading {self.hub} from the Hub needs the package datasets: pip install "
                "'ovlt[datasets]', or name a folder with its files (evaluate.benchmark.data)"
            ) from None
        for config in self.configs:
            names = () if config == "default" else (config,)
            try:
                table = load_dataset(self.hub, *names, split=self.split)
            except Exception as error:  # of the network, the Hub, and many packages below it
                raise ValueError(
                    f"{self.origin} cannot be loaded ({type(error).__name__}: {str(error)[:200]}). "
                    "Without a network, name a folder with its files (evaluate.benchmark.data)"
                ) from None
            for column, feature in table.features.items():
                if isinstance(feature, Image):
                    table = table.cast_column(column, Image(decode=False))
            for row in table:
                yield dict(row), Path()


def source_of(benchmark: BenchmarkTask, split: Split, where: str) -> RowSource:
    """Return the rows of a split: ``where`` is a file, a folder, a Hub id, or "" for its own id.

    A folder holds the benchmark's files, or a folder named after it. Raises ValueError.
    """
    configs = split.configs or (split.config,)
    path = Path(where).expanduser()
    if where and path.is_file():
        return FileRows((path,))
    if where and path.is_dir():
        return FileRows(tuple(_files(benchmark, split, path)))
    if where and (where.count("/") != 1 or where.startswith((".", "~", "/"))):
        raise ValueError(f"no file or folder {path} with the rows of {benchmark.name}")
    return HubRows(where or benchmark.hub, configs, split.split)


def _files(benchmark: BenchmarkTask, split: Split, root: Path) -> list[Path]:
    repository = benchmark.hub.partition("/")[2]
    folders = [root / benchmark.name, root / repository, root / benchmark.hub, root]
    folders = [folder for folder in folders if folder.is_dir()]
    configs = split.configs or (split.config,)
    for folder in folders:
        for stems in split.files:
            # One folder per configuration, or one that joins them (lmms-eval's copy of EMMA).
            for wanted in dict.fromkeys((configs, (split.config,))):
                places = [_matches(folder, config, stem) for config in wanted for stem in stems]
                if all(places):
                    return [file for files in places for file in files]
    tried = [f"{stem}*.parquet, .jsonl or .json" for stems in split.files for stem in stems]
    inside = "" if split.config in ("default", "All") else f" in a folder {split.config!r}"
    raise ValueError(
        f"no rows of {benchmark.name} in {', '.join(map(str, folders))}: looked for "
        f"{' or '.join(tried)}{inside}"
        + (f", in folders {', '.join(split.configs)}" if len(split.configs) > 1 else "")
    )


def _matches(folder: Path, config: str, stem: str) -> list[Path]:
    """Return the first kind of file that is there: parquet shards, one parquet, JSONL, JSON."""
    for place in (folder / config, folder / "data" / config, folder / "data", folder):
        # Several configurations have files of the same name: theirs must be in their own folder.
        if config not in ("default", "testmini", "testmini_text_only") and place.name != config:
            continue
        for suffix in _SUFFIXES:
            if files := sorted(place.glob(f"{stem}{suffix}")):
                return files
    return []


def image_of(row: dict[str, object], columns: str, base: Path) -> ImageRef | None:
    """Return the image of the first of the columns ("a|b") that the row has; None if it is null.

    Raises BadImage if a path leads nowhere.
    """
    value = next((row[column] for column in columns.split("|") if column in row), None)
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return ImageRef(path=str(path or ""), data=data)
        value = path
    if isinstance(value, bytes):
        return ImageRef(data=value)
    if isinstance(value, str) and value:
        return ImageRef(path=str(_found(value, base)))
    return None


def _found(name: str, base: Path) -> Path:
    """Return where a relative path leads: from the file's folder, its parent, or their images."""
    relative = Path(name.removeprefix("./"))
    if relative.is_absolute() or ".." in relative.parts:
        raise BadImage(f"image path {name!r} leaves the folder of the benchmark")
    for root in (base, base.parent):
        for inside in ("", "images", "hallusion_bench"):
            if (root / inside / relative).is_file():
                return root / inside / relative
    raise BadImage(f"image file {relative} is not in {base} or {base.parent}")
