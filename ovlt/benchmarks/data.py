"""The items of a benchmark: read, completed, checked by count; their images are read again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovlt.benchmarks.files import RowSource, image_of, source_of
from ovlt.benchmarks.items import BenchmarkItem, BenchmarkTask, Split
from ovlt.data.images import BadImage, ImageRef

_SHOWN = 6  # differences of counts in one message


@dataclass(frozen=True)
class BenchmarkData:
    """The items of one split, in the order of its files."""

    benchmark: BenchmarkTask
    split: str
    source: RowSource
    items: tuple[BenchmarkItem, ...]
    check: str  # "" if all counts are those of the benchmark, else how they differ

    @property
    def labels_hash(self) -> str:
        """Twelve digits over all ids and labels: benchmarks correct their labels now and then."""
        digest = hashlib.sha256()
        for item in sorted(self.items, key=lambda item: item.id):
            digest.update(f"{item.id}\t{self.benchmark.answer(item.row)}\n".encode())
        return digest.hexdigest()[:12]

    def images(self, items: Sequence[BenchmarkItem]) -> Iterator[Mapping[int, ImageRef]]:
        """Yield the images of items, which are in the order of the files, one row at a time."""
        wanted = iter(items)
        item = next(wanted, None)
        for place, (row, base) in enumerate(self.source.rows()):
            if item is None:
                return
            if place == item.place:
                refs = _images(self.benchmark, row, base)
                yield {number: refs[number] for number in item.images}
                item = next(wanted, None)


def read_benchmark(
    benchmark: BenchmarkTask,
    split: str,
    where: str,
    *,
    strict: bool = True,
    with_images: bool = True,
) -> BenchmarkData:
    """Read the items of a split; ``where`` as ``source_of`` takes it.

    Without ``with_images`` only what rules read is needed: an image folder may be missing.
    ``strict`` refuses files whose counts are not those of the benchmark; otherwise ``check`` says
    how they differ. Raises ValueError: a missing file, column or image, a doubled id, other counts.
    """
    wanted = benchmark.splits[split]
    source = source_of(benchmark, wanted, where)
    rows: list[dict[str, object]] = []
    present: list[tuple[int, ...]] = []
    names = {name for columns in benchmark.image_columns for name in columns.split("|")}
    for number, (row, base) in enumerate(source.rows()):
        missing = [column for column in benchmark.columns if column not in row]
        if missing:
            raise ValueError(
                f"{source.origin}: row {number} has no column {', '.join(missing)}; it has "
                f"{', '.join(row)}"
            )
        try:
            images = _images(benchmark, row, base) if with_images else {}
        except BadImage as error:
            raise ValueError(f"{source.origin}: row {number}: {error}") from None
        present.append(tuple(sorted(images)))
        rows.append({name: value for name, value in row.items() if name not in names})
    completed = benchmark.complete(rows)
    chosen = [
        BenchmarkItem(benchmark.row_id(row), row, images, place)
        for place, (row, images) in enumerate(zip(completed, present, strict=True))
        if _belongs(row, wanted)
    ]
    check = _check(benchmark, wanted, chosen)
    if check and strict:
        raise ValueError(
            f"{source.origin} is not {benchmark.title}'s {split}: {check}. Another release of the "
            "files, or part of them? evaluate.benchmark.check_counts = false scores what is there"
        )
    twice = [name for name, n in Counter(item.id for item in chosen).items() if n > 1]
    if twice:
        raise ValueError(f"{source.origin} holds the id {twice[0]!r} more than once")
    if not chosen:
        raise ValueError(f"{source.origin} holds no row of {benchmark.title}'s {split}")
    return BenchmarkData(benchmark, split, source, tuple(chosen), check)


def _belongs(row: Mapping[str, object], split: Split) -> bool:
    return split.only is None or str(row.get(split.only[0])) in split.only[1]


def _images(benchmark: BenchmarkTask, row: dict[str, object], base: Path) -> dict[int, ImageRef]:
    """Return the images of a row by number. Raises BadImage."""
    refs: dict[int, ImageRef] = {}
    for number, columns in enumerate(benchmark.image_columns, 1):
        ref = image_of(row, columns, base)
        if ref is not None:
            ref.open().close()
            refs[number] = ref
    return refs


def _check(benchmark: BenchmarkTask, split: Split, items: Sequence[BenchmarkItem]) -> str:
    """Compare the counts by category; return how they differ, "" if they do not."""
    counted: Counter[tuple[str, str]] = Counter({("", ""): len(items)})
    for item in items:
        for title, labels in benchmark.counts(item.row).items():
            counted.update((title, label) for label in labels)
    titles = {title for title, _ in split.counts}
    places = [("", ""), *split.counts, *(place for place in counted if place not in split.counts)]
    differences = [
        f"{' '.join(filter(None, place)) or 'rows'}: {split.counts.get(place, 0)} expected, "
        f"{counted[place]} found"
        for place in dict.fromkeys(places)
        if place[0] in titles and counted[place] != split.counts.get(place, 0)
    ]
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
