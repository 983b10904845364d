"""The first pass over a mixture's sources: what is usable, and why the rest is not.

Nothing of a row is kept but its place and two numbers, so memory does not grow with the images.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ovlt.config import MixtureConfig
from ovlt.data.images import BadImage, ImageRef, image_refs
from ovlt.data.mixture.difficulty import error_rates, question_level, source_levels
from ovlt.data.mixture.overlap import Benchmark, Shown, dhash, image_digest
from ovlt.data.mixture.shares import Entry
from ovlt.data.readers import BadRow, Row, open_source


@dataclass
class Found:
    """What the first pass learns of a source: its usable rows, and what became of the others."""

    layout: str = ""
    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    overlap: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    other_level: int = 0
    other_pass_rate: int = 0
    index: array[int] = field(default_factory=lambda: array("Q"))  # place in the stream
    rank: array[int] = field(default_factory=lambda: array("Q"))  # the draw takes the lowest
    image: array[int] = field(default_factory=lambda: array("Q"))  # which images it shows


class Inspector:
    """Digests, and hashes where a benchmark asks for them, each image once while it is fresh."""

    def __init__(self, hashed: bool):
        self.hashed = hashed
        # several questions in a row show the same image; a parquet cell is known by its digest
        self.of_path = lru_cache(64)(self._of_path)
        self.hash_of: dict[bytes, Any] = {}

    def __call__(self, ref: ImageRef) -> Shown:
        """Raises BadImage: missing, empty, or with a header that cannot be read."""
        return self.of_path(ref.path) if ref.data is None else self._inspect(ref)

    def _of_path(self, path: str) -> Shown:
        return self._inspect(ImageRef(path))

    def _inspect(self, ref: ImageRef) -> Shown:
        digest = image_digest(ref)
        if digest not in self.hash_of:
            if len(self.hash_of) >= 64:
                self.hash_of.pop(next(iter(self.hash_of)))
            try:
                with ref.open():  # the header only
                    pass
                self.hash_of[digest] = dhash(ref) if self.hashed else None
            except BadImage as bad:
                self.hash_of[digest] = bad
        known = self.hash_of[digest]
        if isinstance(known, BadImage):
            raise known
        return Shown(digest, known)


Rates = Mapping[tuple[str, str], float]  # of a question, by its source and id


def levels_of(mixture: MixtureConfig, chosen: Sequence[Entry], rates: Rates) -> dict[str, str]:
    """Difficulty by source, where the recipe or a measurement rates at least three of them."""
    ratings = {e.name: e.config.rating for e in chosen if e.config.rating is not None}
    asked = [{"source": source, "pass_rate": rate} for (source, _), rate in rates.items()]
    measured = error_rates(asked) if asked else {}
    errors = {e.name: measured[e.name][1] for e in chosen if e.name in measured}
    errors |= {e.name: e.config.error_rate for e in chosen if e.config.error_rate is not None}
    if len({*ratings, *errors}) < 3 and not (mixture.levels and (ratings or errors)):
        return {}
    try:
        return source_levels(ratings, errors)
    except ValueError:
        if not rates:
            raise
        return {}  # measured questions have levels of their own


def level_of(row: Row, levels: dict[str, str]) -> str:
    """A question's own level where the model was measured on it, else its source's."""
    rate = row.get("pass_rate")
    if rate is not None:
        return question_level(rate)
    return levels.get(row["source"], row.get("difficulty") or "")


def survey(
    entry: Entry,
    mixture: MixtureConfig,
    levels: dict[str, str],
    rates: Rates,
    benchmark: Benchmark,
    inspect: Inspector,
    seen: set[bytes],
) -> Found:
    """Read a source; ``seen`` holds the digests of the questions of those before it, and grows.

    Raises ValueError: too much of it is bad, or its difficulty is asked for and not known.
    """
    found = Found()
    found.layout, rows = open_entry(entry, rates)
    for index, row in enumerate(rows):
        found.read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            shown = [inspect(ref) for ref in refs(row)]
            rate = row.get("pass_rate")
            if rate is not None and not (isinstance(rate, int | float) and 0 <= rate <= 1):
                raise BadRow("pass_rate is not between 0 and 1")
        except (BadRow, BadImage) as bad:
            found.bad[str(bad)] += 1
            continue
        if rate is not None and not mixture.min_pass_rate <= rate <= mixture.max_pass_rate:
            found.other_pass_rate += 1
            continue
        if mixture.levels:
            level = level_of(row, levels)
            if not level and not rates:
                raise ValueError(
                    f"mixture.levels = {list(mixture.levels)} needs the difficulty of "
                    f"'{row['source']}': give its source a rating or an error_rate, or its rows a "
                    "pass_rate (mixture.pass_rates)"
                )
            if level not in mixture.levels:  # nor one that was not measured
                found.other_level += 1
                continue
        key = _digest("question", row["problem"], *(image.digest for image in shown))
        if key in seen:
            found.duplicates += 1
            continue
        seen.add(key)
        if reason := benchmark.overlap(row["problem"], shown):
            found.overlap[reason] += 1
            continue
        found.index.append(index)
        found.rank.append(_number(mixture.seed, "rank", row["source"], row["id"], key))
        found.image.append(_number(mixture.seed, "image", shown[0].digest if shown else key))
    if sum(found.bad.values()) > mixture.max_bad_share * found.read:
        reasons = "; ".join(f"{n} x {reason}" for reason, n in found.bad.most_common(5))
        raise ValueError(
            f"{entry.name} ({entry.config.path}, read as {found.layout}): "
            f"{sum(found.bad.values())} of {found.read} rows are bad, more than "
            f"mixture.max_bad_share = {mixture.max_bad_share:.0%}: {reasons}"
        )
    return found


def open_entry(entry: Entry, rates: Rates) -> tuple[str, Iterator[Row | BadRow]]:
    """(layout, rows) of a source of a mixture; rows that were measured have that pass_rate."""
    source = entry.config
    layout, rows = open_source(source.source, source.path, split=source.split, subset=source.subset)

    def measured(row: Row | BadRow) -> Row | BadRow:
        if isinstance(row, BadRow) or (key := (row["source"], str(row["id"]))) not in rates:
            return row
        return row | {"pass_rate": rates[key]}

    return layout, map(measured, rows) if rates else rows


def refs(row: Row) -> tuple[ImageRef, ...]:
    """The images of a row that a reader yielded."""
    return image_refs(row["images"], Path())


def _digest(*parts: object) -> bytes:
    """16 bytes; parts are kept apart by their lengths."""
    total = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.digest()


def _number(*parts: object) -> int:
    return int.from_bytes(_digest(*parts)[:8], "little")
