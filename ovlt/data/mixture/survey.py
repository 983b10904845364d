"""The first pass over the sources of a mixture: what is usable, and why the rest is not.

Only the position and two numbers of each row stay in memory, so images take none of it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ovlt.config import MixtureConfig
from ovlt.data.image_forms import image_refs
from ovlt.data.image_refs import BadImage, ImageRef
from ovlt.data.mixture.difficulty import error_rates, question_level, source_levels
from ovlt.data.mixture.overlap import Benchmark, Shown, dhash, image_digest
from ovlt.data.mixture.shares import Entry
from ovlt.data.readers import BadRow, QuestionRow, open_source
from ovlt.data.readers.layouts import RowStream


@dataclass
class SourceSurvey:
    """What the first pass learns about a source: its usable rows, and why others are left out."""

    layout: str = ""
    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # reason -> rows
    overlap: Counter[str] = field(default_factory=Counter)  # reason -> rows of a benchmark
    duplicates: int = 0
    other_level: int = 0
    other_pass_rate: int = 0
    # The ids of rows whose id another row of their source had before, by the place of the row.
    renamed: dict[int, str] = field(default_factory=dict)
    # Of each usable row:
    index: array[int] = field(default_factory=lambda: array("Q"))  # its place in the stream
    rank: array[int] = field(default_factory=lambda: array("Q"))  # the draw takes the lowest
    image: array[int] = field(default_factory=lambda: array("Q"))  # a number for its first image


class Inspector:
    """Computes the digest of an image, and its hash if a benchmark needs that.

    Questions that follow each other often show the same image, so the last 64 images are kept.
    """

    def __init__(self, hashed: bool):
        self.hashed = hashed
        self.of_path = lru_cache(64)(self._of_path)
        self.outcomes: dict[bytes, np.ndarray | BadImage | None] = {}  # by digest

    def __call__(self, ref: ImageRef) -> Shown:
        """Inspect an image. Raises BadImage: missing, empty, or its header cannot be read."""
        return self.of_path(ref.path) if ref.in_file else self._inspect(ref)

    def _of_path(self, path: str) -> Shown:
        return self._inspect(ImageRef(path))

    def _inspect(self, ref: ImageRef) -> Shown:
        digest = image_digest(ref)
        if digest not in self.outcomes:
            if len(self.outcomes) >= 64:
                self.outcomes.pop(next(iter(self.outcomes)))
            try:
                with ref.open():  # reads the header only
                    pass
                self.outcomes[digest] = dhash(ref) if self.hashed else None
            except BadImage as bad:
                self.outcomes[digest] = bad
        outcome = self.outcomes[digest]
        if isinstance(outcome, BadImage):
            raise outcome
        return Shown(digest, outcome)


Rates = Mapping[tuple[str, str], float]  # (source, id) of a question -> its pass rate


def levels_of(mixture: MixtureConfig, chosen: Sequence[Entry], rates: Rates) -> dict[str, str]:
    """Return the difficulty of each source; {} if fewer than three are rated or measured."""
    ratings = {e.name: e.config.rating for e in chosen if e.config.rating is not None}
    questions = [{"source": source, "pass_rate": rate} for (source, _), rate in rates.items()]
    measured = error_rates(questions) if questions else {}
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


def pass_rate_of(row: QuestionRow) -> float | None:
    """Return the share of right answers, None if nobody measured it. Raises BadRow."""
    rate = row.get("pass_rate")
    if rate is None:
        return None
    if not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise BadRow("pass_rate is not between 0 and 1")
    return rate


def level_of(row: QuestionRow, levels: Mapping[str, str]) -> str:
    """Return the level of a question that was measured; of others, that of their source."""
    rate = pass_rate_of(row)
    if rate is not None:
        return question_level(rate)
    return levels.get(row["source"], row.get("difficulty") or "")


def survey(
    entry: Entry,
    mixture: MixtureConfig,
    levels: Mapping[str, str],
    rates: Rates,
    benchmark: Benchmark,
    inspect: Inspector,
    seen: set[bytes],
) -> SourceSurvey:
    """Read a source and say which of its rows are usable.

    ``seen`` holds the digests of the questions and ids of the sources before it, and grows. Raises
    ValueError: too large a share is bad, or a difficulty is needed that nobody knows.
    """
    result = SourceSurvey()
    result.layout, rows = open_entry(entry)
    for index, row in enumerate(rows):
        result.read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            while (name := _digest("id", row["source"], row["id"])) in seen:
                result.renamed[index] = row["id"] = f"{row['id']}#{index}"
            seen.add(name)
            row = with_pass_rate(row, rates)
            shown = [inspect(ref) for ref in refs(row)]
            rate = pass_rate_of(row)
        except (BadRow, BadImage) as bad:
            result.bad[str(bad)] += 1
            continue
        if rate is not None and not mixture.min_pass_rate <= rate <= mixture.max_pass_rate:
            result.other_pass_rate += 1
            continue
        if mixture.levels and not _of_these_levels(row, mixture, levels, rates):
            result.other_level += 1
            continue
        key = _digest("question", row["problem"], *(image.digest for image in shown))
        if key in seen:
            result.duplicates += 1
            continue
        seen.add(key)
        if reason := benchmark.overlap(row["problem"], shown):
            result.overlap[reason] += 1
            continue
        result.index.append(index)
        result.rank.append(_number(mixture.seed, "rank", row["source"], row["id"], key))
        result.image.append(_number(mixture.seed, "image", shown[0].digest if shown else key))
    _require_good(result, entry, mixture.max_bad_share)
    return result


def _of_these_levels(
    row: QuestionRow, mixture: MixtureConfig, levels: Mapping[str, str], rates: Rates
) -> bool:
    """Whether a question has one of ``mixture.levels``. Raises ValueError if its level is unknown.

    If some questions were measured, one that was not is left out without an error.
    """
    level = level_of(row, levels)
    if not level and not rates:
        raise ValueError(
            f"mixture.levels = {list(mixture.levels)} needs the difficulty of "
            f"'{row['source']}': give its source a rating or an error_rate, or its rows a "
            "pass_rate (mixture.pass_rates)"
        )
    return level in mixture.levels


def _require_good(result: SourceSurvey, entry: Entry, max_bad_share: float) -> None:
    bad = sum(result.bad.values())
    if bad > max_bad_share * result.read:
        reasons = "; ".join(f"{n} x {reason}" for reason, n in result.bad.most_common(5))
        raise ValueError(
            f"{entry.name} ({entry.config.path}, read as {result.layout}): "
            f"{bad} of {result.read} rows are bad, more than "
            f"mixture.max_bad_share = {max_bad_share:.0%}: {reasons}"
        )


def open_entry(entry: Entry) -> tuple[str, RowStream]:
    """Return (layout, rows) of a source."""
    source = entry.config
    return open_source(source.source, source.path, split=source.split, subset=source.subset)


def with_pass_rate(row: QuestionRow, rates: Rates) -> QuestionRow:
    """Return the row; if it was measured, with that pass_rate."""
    key = row["source"], row["id"]
    return {**row, "pass_rate": rates[key]} if key in rates else row


def refs(row: QuestionRow) -> tuple[ImageRef, ...]:
    """Return the images of a row that a reader yielded. Raises BadImage."""
    return image_refs(row["images"], Path())


def _digest(*parts: object) -> bytes:
    """Return a hash of 16 bytes; the lengths of the parts keep them apart."""
    total = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.digest()


def _number(*parts: object) -> int:
    return int.from_bytes(_digest(*parts)[:8], "little")
