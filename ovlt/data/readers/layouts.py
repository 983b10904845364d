"""Which layout of a source lies at a path: told by its files and columns, never guessed.

A ``Table`` is a layout of rows in parquet, JSON or JSONL; a ``Folder`` is the native one, files of
several kinds that belong together. Whatever fits none is reported by what is there and by what the
source's layouts would have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovlt.data.readers.rows import Record, Row
from ovlt.data.tables import TABLES, BadRow, column_names, read_table

Rows = Iterator[Row | BadRow]
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")


@dataclass(frozen=True)
class Asked:
    """Which part of a source is wanted, and what its rows are called."""

    source: str
    path: Path
    split: str = ""
    subset: str = ""
    prefixes: tuple[str, ...] = ()  # of the source's image paths in MathV360K


@dataclass(frozen=True)
class Table:
    """Rows with these columns; ``convert`` yields the questions of one, or raises BadRow."""

    name: str
    columns: tuple[str, ...]
    convert: Callable[[Record, str, Asked], Iterable[Row | BadRow]]  # record, its id, what is asked
    optional: tuple[str, ...] = ()

    @property
    def expects(self) -> str:
        return f"{self.name}: columns {', '.join(self.columns)}"


@dataclass(frozen=True)
class Folder:
    """A folder with a match for each of these patterns; ``read`` yields its rows."""

    name: str
    files: tuple[str, ...]
    read: Callable[[Asked], Rows]

    @property
    def expects(self) -> str:
        return f"{self.name}: a folder with {', '.join(self.files)}"


Layout = Table | Folder


@dataclass(frozen=True)
class Source:
    """A dataset that ovlt can read, and how people have it."""

    name: str
    title: str
    layouts: tuple[Layout, ...]
    subsets: tuple[str, ...] = ()  # folders in LLaVA-OneVision-Data and the_cauldron
    prefixes: tuple[str, ...] = ()  # of image paths in MathV360K


def read_layouts(asked: Asked, source: Source, layouts: Sequence[Layout]) -> tuple[str, Rows]:
    """(name of the layout found, its rows). Raises ValueError when none of ``layouts`` fits."""
    path = asked.path
    if not path.exists():
        raise ValueError(f"{source.title}: nothing at {path}; give the folder or file it lies in")
    path = _snapshot(path)
    if path.is_dir():
        for layout in layouts:
            if isinstance(layout, Folder) and all(any(path.glob(p)) for p in layout.files):
                return layout.name, layout.read(_at(asked, path))
    files = _tables(path, asked, source)
    if not files:
        raise _unknown(source, path, f"holds {_entries(path)}", layouts)
    columns = column_names(files[0])
    fitting = [
        layout
        for layout in layouts
        if isinstance(layout, Table) and set(layout.columns) <= set(columns)
    ]
    if not fitting:
        named = ", ".join(columns) or "none"
        raise _unknown(source, path, f"has {files[0].name} with columns {named}", layouts)
    layout = max(fitting, key=lambda layout: len(layout.columns))  # the most that is known of it
    return layout.name, _table_rows(files, layout, columns, _at(asked, path))


def pick(names: Iterable[str], wanted: str, usual: Sequence[str], what: str, where: Path) -> str:
    """``wanted`` if it is there; else the only name, or the first of ``usual`` that is there.

    Raises ValueError that lists the names.
    """
    names = sorted(set(names))
    if wanted:
        if wanted not in names:
            raise ValueError(f"{where} has no {what} '{wanted}'; it has {', '.join(names)}")
        return wanted
    if len(names) == 1:
        return names[0]
    for name in usual:
        if name in names:
            return name
    raise ValueError(f'{where} has {what}s {", ".join(names)}: say which with {what} = "..."')


def _at(asked: Asked, path: Path) -> Asked:
    return Asked(asked.source, path, asked.split, asked.subset, asked.prefixes)


def _snapshot(path: Path) -> Path:
    """Inside a folder of the Hugging Face cache, the snapshot itself."""
    if path.is_dir() and (path / "snapshots").is_dir():
        names = [entry.name for entry in (path / "snapshots").iterdir()]
        return path / "snapshots" / pick(names, "", (), "snapshot", path)
    return path


def _tables(path: Path, asked: Asked, source: Source) -> list[Path]:
    """The files of rows at a path: one file, or the shards of one split of one subset."""
    if path.is_file():
        return [path] if path.suffix in TABLES else []
    files = sorted(path.rglob("*.parquet"))
    if not files:  # JSON only beside the folder's other entries: below may lie anything
        files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".jsonl"))
        if len(files) > 1 and not asked.split:
            raise ValueError(
                f"{path} has {', '.join(f.name for f in files)}: give the path of the one to read"
            )
        return [f for f in files if not asked.split or f.stem == asked.split]
    groups: dict[str, list[Path]] = {}
    for file in files:
        inner = file.parent.relative_to(path).parts
        groups.setdefault("/".join(part for part in inner if part != "data"), []).append(file)
    known = [name for name in groups if name.split("/")[-1].lower() in _lower(source.subsets)]
    if len(known) > 1 and not asked.subset:
        raise ValueError(
            f"{path} has several subsets of {source.title}: {', '.join(sorted(known))}; "
            'say which with subset = "..."'
        )
    files = groups[pick(groups, asked.subset, known, "subset", path)]
    splits: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        splits.setdefault(shard["split"] if shard else file.stem, []).append(file)
    return splits[pick(splits, asked.split, ("train",), "split", path)]


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}


def _table_rows(files: Sequence[Path], layout: Table, columns: Sequence[str], asked: Asked) -> Rows:
    wanted = [c for c in columns if c in {*layout.columns, *layout.optional}]
    for file in files:
        for index, record in enumerate(read_table(file, wanted)):
            if isinstance(record, BadRow):
                yield record
            elif not isinstance(record, dict):
                yield BadRow("row is not an object")
            else:
                yield from attempt(layout.convert, record, f"{file.stem}/{index}", asked)


def attempt(
    convert: Callable[[Record, str, Asked], Iterable[Row | BadRow]],
    record: Record,
    id: str,
    asked: Asked,
) -> Rows:
    """The rows of one record, with the source's name, or the BadRow that it is."""
    try:
        for row in convert(record, id, asked):
            if not isinstance(row, BadRow):
                row["source"] = row["source"] or asked.source
            yield row
    except BadRow as bad:
        yield bad
    except KeyError as missing:
        yield BadRow(f"record has no {missing}")
    except (TypeError, AttributeError):  # a text where an object should be, and the like
        yield BadRow("record has an unexpected shape")


def _entries(path: Path) -> str:
    if path.is_file():
        return f"a file of type '{path.suffix}'"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return ", ".join(names[:12]) + ", ..." * (len(names) > 12) if names else "nothing"


def _unknown(source: Source, path: Path, found: str, layouts: Sequence[Layout]) -> ValueError:
    expected = "; ".join(layout.expects for layout in layouts)
    return ValueError(f"{source.title}: {path} {found}. Layouts that can be read: {expected}")
