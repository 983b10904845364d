"""Read questions from the datasets that OpenVLThinker trains on, in the layouts people have.

    for row in read("figureqa", "data/FigureQA(MathV360K)"):
        if not isinstance(row, BadRow): ...

A reader needs no network, streams, and never decodes an image; what it cannot use comes as a BadRow
that says why. ``SOURCES`` lists the datasets. Each can also be read from LLaVA conversations
(LLaVA-OneVision-Data, MathV360K), the_cauldron, and rows with EasyR1's or R1-V's columns.
"""

from __future__ import annotations

from pathlib import Path

from ovlt.data.readers import blocks, charts, diagrams, geometry, maps, photos, tabmwp
from ovlt.data.readers.conversations import CAULDRON, LLAVA
from ovlt.data.readers.layouts import (
    FolderLayout,
    Layout,
    RowStream,
    Source,
    SourcePart,
    TableLayout,
    read_layouts,
)
from ovlt.data.readers.prepared import EASYR1, R1V
from ovlt.data.readers.rows import QuestionRow
from ovlt.data.tables import BadRow

__all__ = [
    "SOURCES",
    "BadRow",
    "FolderLayout",
    "QuestionRow",
    "Source",
    "TableLayout",
    "layouts",
    "open_source",
    "read",
]

SOURCES = {
    source.name: source
    for source in (
        charts.FIGUREQA,
        geometry.GEOS,
        geometry.GEOMETRY3K,
        tabmwp.TABMWP,
        photos.VIZWIZ,
        diagrams.AI2D,
        blocks.CLEVR,
        blocks.CLEVR_MATH,
        blocks.COUNTING,
        blocks.SUPER_CLEVR,
        diagrams.ICONQA,
        maps.MAPQA,
        diagrams.SCIENCEQA,
        charts.CHARTQA,
        charts.DVQA,
        photos.AOKVQA,
        geometry.UNIGEO,
        geometry.GEOQA,
        Source("questions", "rows with EasyR1's columns", ()),
    )
}


def layouts(source: Source) -> tuple[Layout, ...]:
    """Return every layout of a source: its own, then those that all sources share."""
    if source.name == "questions":
        return (EASYR1,)
    return (*source.layouts, LLAVA, CAULDRON, EASYR1, R1V)


def open_source(
    name: str, path: str | Path, *, split: str = "", subset: str = ""
) -> tuple[str, RowStream]:
    """Return (the name of the layout at ``path``, its rows and BadRows in the order of the files).

    ``split`` and ``subset`` choose a part if the path holds several. Raises ValueError: unknown
    source, nothing at the path, none of the known layouts (the message says what is there), a
    missing split; and while the rows are read, a broken file, or no row at all.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source '{name}': choose among {', '.join(SOURCES)}")
    source = SOURCES[name]
    part = SourcePart(name, Path(path), split, subset, source.prefixes)
    layout, rows = read_layouts(part, source, layouts(source))
    return layout, _not_empty(rows, source, path)


def read(name: str, path: str | Path, *, split: str = "", subset: str = "") -> RowStream:
    """Return the rows of ``open_source``."""
    return open_source(name, path, split=split, subset=subset)[1]


def _not_empty(rows: RowStream, source: Source, path: str | Path) -> RowStream:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise ValueError(f"{path} has no rows of {source.title}")
