"""Which layout of a source lies at a path: decided by its files and columns, never guessed.

A ``TableLayout`` has rows in parquet, JSON or JSONL; a ``FolderLayout`` is a dataset's native one,
files of several kinds that belong together. If none fits, the error says what is there and what the
layouts of the source would have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.data.readers.rows import QuestionRow, Record
from ovlt.data.tables import TABLES, BadRow, column_names, read_table

RowStream = Iterator[QuestionRow | BadRow]
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")


@dataclass(frozen=True)
class SourcePart:
    """Which part of a source to read."""

    source: str  # what its rows are called
    path: Path
    split: str = ""
    subset: str = ""
    prefixes: tuple[str, ...] = ()  # of the source's image paths in MathV360K


# (record, its id, the part that it belongs to) -> the questions of the record; raises BadRow
Convert = Callable[[Record, str, SourcePart], Iterable[QuestionRow | BadRow]]


@dataclass(frozen=True)
class TableLayout:
    """Rows with these columns."""

    name: str
    columns: tuple[str, ...]
    convert: Convert
    optional: tuple[str, ...] = ()  # columns that are read if they are there
    whole: bool = False  # read every column: one that looks meant makes a bad row

    @property
    def expects(self) -> str:
        """One line for error messages."""
        return f"{self.name}: columns {', '.join(self.columns)}"


@dataclass(frozen=True)
class FolderLayout:
    """A folder in which each of these patterns has a match."""

    name: str
    files: tuple[str, ...]
    read: Callable[[SourcePart], RowStream]

    @property
    def expects(self) -> str:
        """One line for error messages."""
        return f"{self.name}: a folder with {', '.join(self.files)}"


Layout = TableLayout | FolderLayout


@dataclass(frozen=True)
class Source:
    """A dataset that ovlt can read, and the layouts in which people have it."""

    name: str
    title: str
    layouts: tuple[Layout, ...]
    subsets: tuple[str, ...] = ()  # folders in LLaVA-OneVision-Data and the_cauldron
    prefixes: tuple[str, ...] = ()  # of image paths in MathV360K


def read_layouts(
    part: SourcePart, source: Source, layouts: Sequence[Layout]
) -> tuple[str, RowStream]:
    """Return (the name of the layout that fits, its rows). Raises ValueError if none fits."""
    if not part.path.exists():
        raise ValueError(
            f"{source.title}: nothing at {part.path}; give the folder or file it lies in"
        )
    path = _snapshot(part.path)
    part = replace(part, path=path)
    if path.is_dir():
        for layout in layouts:
            if isinstance(layout, FolderLayout) and all(any(path.glob(p)) for p in layout.files):
                return layout.name, layout.read(part)
    files = _tables(part, source)
    if not files:
        raise _unknown(source, path, f"holds {_entries(path)}", layouts)
    columns = column_names(files[0])
    fitting = [
        layout
        for layout in layouts
        if isinstance(layout, TableLayout) and set(layout.columns) <= set(columns)
    ]
    if not fitting:
        named = ", ".join(columns) or "none"
        raise _unknown(source, path, f"has {files[0].name} with columns {named}", layouts)
    layout = max(fitting, key=lambda layout: len(layout.columns))  # the most specific one
    return layout.name, _table_rows(files, layout, columns, part)


def pick(names: Iterable[str], choice: str, usual: Sequence[str], what: str, where: Path) -> str:
    """Return ``choice`` if it is there; without one, the only name, or the first of ``usual``.

    Raises ValueError that lists the names; ``what`` says what they are, ``where`` who has them.
    """
    names = sorted(set(names))
    if choice:
        if choice not in names:
            raise ValueError(f"{where} has no {what} '{choice}'; it has {', '.join(names)}")
        return choice
    if len(names) == 1:
        return names[0]
    for name in usual:
        if name in names:
            return name
    raise ValueError(f'{where} has {what}s {", ".join(names)}: say which with {what} = "..."')


def _snapshot(path: Path) -> Path:
    """Return the snapshot inside a folder of the Hugging Face cache; any other path as it is."""
    if path.is_dir() and (path / "snapshots").is_dir():
        names = [entry.name for entry in (path / "snapshots").iterdir()]
        return path / "snapshots" / pick(names, "", (), "snapshot", path)
    return path


def _tables(part: SourcePart, source: Source) -> list[Path]:
    """Return the files of rows at a path: one file, or the shards of one split of one subset."""
    path = part.path
    if path.is_file():
        return [path] if path.suffix in TABLES else []
    files = sorted(path.rglob("*.parquet"))
    if not files:
        return _json_tables(part)
    groups: dict[str, list[Path]] = {}
    for file in files:
        inner = file.parent.relative_to(path).parts
        groups.setdefault("/".join(name for name in inner if name != "data"), []).append(file)
    subsets = {name.lower() for name in source.subsets}
    usual = [name for name in groups if name.split("/")[-1].lower() in subsets]
    if len(usual) > 1 and not part.subset:
        raise ValueError(
            f"{path} has several subsets of {source.title}: {', '.join(sorted(usual))}; "
            'say which with subset = "..."'
        )
    files = groups[pick(groups, part.subset, usual, "subset", path)]
    splits: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        splits.setdefault(shard["split"] if shard else file.stem, []).append(file)
    return splits[pick(splits, part.split, ("train",), "split", path)]


def _json_tables(part: SourcePart) -> list[Path]:
    """Return the JSON or JSONL file of a folder; folders below it may hold anything else."""
    files = sorted(f for f in part.path.iterdir() if f.suffix in (".json", ".jsonl"))
    if len(files) > 1 and not part.split:
        names = ", ".join(f.name for f in files)
        raise ValueError(f"{part.path} has {names}: give the path of the one to read")
    return [f for f in files if not part.split or f.stem == part.split]


def _table_rows(
    files: Sequence[Path], layout: TableLayout, columns: Sequence[str], part: SourcePart
) -> RowStream:
    needed = [c for c in columns if layout.whole or c in {*layout.columns, *layout.optional}]
    for file in files:
        for index, record in enumerate(read_table(file, needed)):
            if isinstance(record, BadRow):
                yield record
            elif not isinstance(record, dict):
                yield BadRow("row is not an object")
            else:
                yield from attempt(layout.convert, record, f"{file.stem}/{index}", part)


def extended(record: object, **fields: object) -> object:
    """Return a record with more fields; what is no object stays as it is, for ``attempt``."""
    return record | fields if isinstance(record, dict) else record


def attempt(convert: Convert, record: object, id: str, part: SourcePart) -> RowStream:
    """Yield the rows of one record, with the name of the source, or the BadRow that it is."""
    if not isinstance(record, dict):
        yield BadRow("record has an unexpected shape")
        return
    try:
        for row in convert(record, id, part):
            if not isinstance(row, BadRow):
                row["source"] = row["source"] or part.source
            yield row
    except BadRow as bad:
        yield bad
    except KeyError as missing:
        yield BadRow(f"record has no {missing}")
    except (TypeError, AttributeError):  # a text in place of an object, and the like
        yield BadRow("record has an unexpected shape")


def _entries(path: Path) -> str:
    if path.is_file():
        return f"a file of type '{path.suffix}'"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return ", ".join(names[:12]) + ", ..." * (len(names) > 12) if names else "nothing"


def _unknown(source: Source, path: Path, content: str, layouts: Sequence[Layout]) -> ValueError:
    expected = "; ".join(layout.expects for layout in layouts)
    return ValueError(f"{source.title}: {path} {content}. Layouts that can be read: {expected}")
