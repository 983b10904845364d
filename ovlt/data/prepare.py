"""Datasets as people have them -> files of questions to train on, by a recipe's [mixture].

    python -m ovlt.data.prepare my.toml --mixture.name=v2-medium
    python -m ovlt.data.prepare --list

Writes train.parquet (EasyR1's columns; with mixture.validation also validation.parquet), on wish
LLaMA-Factory's sharegpt files, and report.json: rows by source, and what was left out and why.

Two passes over the sources, so that memory does not grow with the images: the first hashes every
question and decides, the second reads again and writes what was chosen. The draw takes the rows
with the lowest hash of seed and content: the same rows whatever else the mixture holds.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

from ovlt.config import MixtureConfig
from ovlt.data.difficulty import question_level, source_levels
from ovlt.data.images import BadImage, ImageRef, image_refs
from ovlt.data.mixture import MIXES, Entry, entries, quotas
from ovlt.data.overlap import Benchmark, Shown, dhash, image_digest, load_benchmark
from ovlt.data.readers import SOURCES, BadRow, Row, layouts, open_source
from ovlt.data.writers import write_rows

COLUMNS = {
    "problem": "text",
    "answer": "text",
    "images": "images",
    "source": "text",
    "id": "text",
    "kind": "text",
    "choices": "texts",
    "difficulty": "text",
    "pass_rate": "number",
}
SHAREGPT_COLUMNS = {"messages": "messages", "images": "images", "source": "text", "id": "text"}


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


def prepare(mixture: MixtureConfig, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write a mixture's files and return the report. Raises ValueError: the recipe or data cannot
    be used; nothing is left in the place of a file that was there before."""
    chosen, total = entries(mixture)
    levels = _levels(mixture, chosen)
    benchmark = load_benchmark(mixture.benchmarks, mixture.overlap_bits)
    inspect = Inspector(hashed=len(benchmark.hashes) > 0)
    seen: set[bytes] = set()
    found = []
    for entry in chosen:
        found.append(_first_pass(entry, mixture, levels, benchmark, inspect, seen))
        tell(_summary(entry, found[-1]))
    takes = _draw(mixture, chosen, found, total)
    if not any(takes):
        raise ValueError("no question is left to write: see the counts above for the reasons")
    parts = {"train": [take - held for take, held in takes]}
    if mixture.validation:
        parts["validation"] = [held for _, held in takes]
    folder = Path(mixture.folder)
    written = {}
    for part, picks in parts.items():
        name = f"{part}.parquet" if mixture.images == "bytes" else f"{part}.jsonl"
        rows = _second_pass(chosen, picks, levels, mixture.seed)
        written[part] = write_rows(rows, folder / name, COLUMNS)
        tell(f"wrote {written[part]} questions to {folder / name}")
        if mixture.sharegpt:
            talks = map(sharegpt_row, _second_pass(chosen, picks, levels, mixture.seed))
            write_rows(talks, folder / f"{part}_sharegpt.jsonl", SHAREGPT_COLUMNS)
    if mixture.sharegpt:
        _register(folder, list(parts))
    report = _report(mixture, chosen, found, parts, levels, total, written)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


# --- first pass: what there is -------------------------------------------------------------------


def _levels(mixture: MixtureConfig, chosen: Sequence[Entry]) -> dict[str, str]:
    """Difficulty by source, where the recipe rates at least three of them."""
    ratings = {e.name: e.config.rating for e in chosen if e.config.rating is not None}
    errors = {e.name: e.config.error_rate for e in chosen if e.config.error_rate is not None}
    if len({*ratings, *errors}) < 3 and not (mixture.levels and (ratings or errors)):
        return {}
    return source_levels(ratings, errors)


def _level(row: Row, levels: dict[str, str]) -> str:
    """A question's own level where the model was measured on it, else its source's."""
    rate = row.get("pass_rate")
    if rate is not None:
        return question_level(rate)
    return levels.get(row["source"], row.get("difficulty") or "")


def _first_pass(
    entry: Entry,
    mixture: MixtureConfig,
    levels: dict[str, str],
    benchmark: Benchmark,
    inspect: Inspector,
    seen: set[bytes],
) -> Found:
    found = Found()
    found.layout, rows = _open(entry)
    for index, row in enumerate(rows):
        found.read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            shown = [inspect(ref) for ref in _refs(row)]
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
            level = _level(row, levels)
            if not level:
                raise ValueError(
                    f"mixture.levels = {list(mixture.levels)} needs the difficulty of "
                    f"'{row['source']}': give its source a rating or an error_rate, or its rows a "
                    "pass_rate"
                )
            if level not in mixture.levels:
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


def _open(entry: Entry) -> tuple[str, Iterator[Row | BadRow]]:
    source = entry.config
    return open_source(source.source, source.path, split=source.split, subset=source.subset)


def _refs(row: Row) -> tuple[ImageRef, ...]:
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


# --- the draw ------------------------------------------------------------------------------------


def _draw(
    mixture: MixtureConfig, chosen: Sequence[Entry], found: Sequence[Found], total: int
) -> list[tuple[set[int], set[int]]]:
    """For each source the places of the rows to train on, and of those held back."""
    limits = [min(len(f.index), e.cap or len(f.index)) for e, f in zip(chosen, found, strict=True)]
    wanted = total + mixture.validation if total else 0
    sizes = quotas(wanted, [entry.share for entry in chosen], limits)
    if mixture.validation and sum(sizes) <= mixture.validation:
        raise ValueError(
            f"mixture.validation = {mixture.validation} leaves nothing to train on: there are "
            f"{sum(sizes)} questions"
        )
    picks = []
    by_image: dict[int, list[tuple[int, int]]] = {}
    for number, (size, f) in enumerate(zip(sizes, found, strict=True)):
        drawn = sorted(range(len(f.index)), key=f.rank.__getitem__)[:size]
        picks.append({f.index[place] for place in drawn})
        for place in drawn:
            by_image.setdefault(f.image[place], []).append((number, f.index[place]))
    held: list[set[int]] = [set() for _ in chosen]
    left = mixture.validation
    for image in sorted(by_image):  # by a seeded hash, so at random
        if len(by_image[image]) <= left:  # all questions about an image, or none
            for number, place in by_image[image]:
                held[number].add(place)
            left -= len(by_image[image])
    return [(pick - aside, aside) for pick, aside in zip(picks, held, strict=True)]


# --- second pass: what is written ----------------------------------------------------------------


def _second_pass(
    chosen: Sequence[Entry], picks: Sequence[set[int]], levels: dict[str, str], seed: int
) -> Iterator[Row]:
    """The picked rows, the sources interleaved: any first part of the file is a mixture too."""
    streams = [_picked(entry, pick) for entry, pick in zip(chosen, picks, strict=True)]
    left = [len(pick) for pick in picks]
    rng = Random(f"order/{seed}")
    while any(left):
        [number] = rng.choices(range(len(left)), weights=left)
        left[number] -= 1
        row = next(streams[number], None)
        if row is None:
            raise ValueError(f"{chosen[number].config.path} has changed while it was read")
        yield _finished(row, levels)


def _picked(entry: Entry, pick: set[int]) -> Iterator[Row]:
    left = len(pick)
    for index, row in enumerate(_open(entry)[1] if pick else ()):
        if index in pick and not isinstance(row, BadRow):
            yield row
            left -= 1
            if not left:
                return


def _finished(row: Row, levels: dict[str, str]) -> Row:
    """With its images as bytes, named by their content, and every column of the file."""
    images = []
    for ref in _refs(row):
        with ref.open() as header:
            suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(str(header.format), str(header.format))
        data = Path(ref.path).read_bytes() if ref.data is None else ref.data
        images.append({"bytes": data, "path": f"{image_digest(ref).hex()}.{suffix.lower()}"})
    return row | {
        "images": images,
        "id": str(row["id"]),
        "choices": row.get("choices") or [],
        "difficulty": _level(row, levels),
        "pass_rate": row.get("pass_rate"),
    }


def sharegpt_row(row: Row) -> Row:
    """A question and its bare answer as a conversation for LLaMA-Factory."""
    messages = [
        {"role": "user", "content": row["problem"]},
        {"role": "assistant", "content": f"<answer>{row['answer']}</answer>"},
    ]
    return {name: row[name] for name in ("images", "source", "id")} | {"messages": messages}


def _register(folder: Path, parts: Sequence[str]) -> None:
    """dataset_info.json, by which LLaMA-Factory finds the files and names their columns."""
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    }
    info = {
        f"{folder.name}_{part}": {
            "file_name": f"{part}_sharegpt.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": tags,
        }
        for part in parts
    }
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


# --- what is told --------------------------------------------------------------------------------


def _summary(entry: Entry, found: Found) -> str:
    counts = [
        f"{found.read} read",
        f"{sum(found.bad.values())} bad",
        f"{found.duplicates} duplicates",
        f"{sum(found.overlap.values())} in a benchmark",
        f"{len(found.index)} usable",
    ]
    lines = [f"{entry.name} ({found.layout}): {', '.join(counts)}"]
    lines += [f"  {n} x {reason}" for reason, n in (found.bad + found.overlap).most_common()]
    return "\n".join(lines)


def _report(
    mixture: MixtureConfig,
    chosen: Sequence[Entry],
    found: Sequence[Found],
    parts: dict[str, list[set[int]]],
    levels: dict[str, str],
    total: int,
    written: dict[str, int],
) -> dict[str, Any]:
    sources = [
        {
            "source": entry.name,
            "path": entry.config.path,
            "layout": f.layout,
            "share": entry.share,
            "cap": entry.cap,
            "level": levels.get(entry.name, ""),
            "read": f.read,
            "bad": dict(f.bad.most_common()),
            "duplicates": f.duplicates,
            "in_benchmark": dict(f.overlap.most_common()),
            "other_level": f.other_level,
            "other_pass_rate": f.other_pass_rate,
            "usable": len(f.index),
            "written": {part: len(picks[i]) for part, picks in parts.items()},
        }
        for i, (entry, f) in enumerate(zip(chosen, found, strict=True))
    ]
    short = max(0, total - written["train"])
    return {
        "mixture": mixture.name,
        "seed": mixture.seed,
        "asked": total,
        "written": written,
        "short": short,
        "benchmarks": list(mixture.benchmarks),
        "overlap_bits": mixture.overlap_bits,
        "sources": sources,
    }


def listing() -> str:
    """Every source with its layouts, and every published mixture."""
    lines = ["Sources (mixture.sources.source) and the layouts that are read:"]
    shared = layouts(SOURCES["geos"])
    for source in SOURCES.values():
        own = [layout for layout in layouts(source) if layout not in shared]
        lines.append(f"  {source.name:<12} {source.title}")
        lines += [f"    {layout.expects}" for layout in own]
    lines.append("  every source:")
    lines += [f"    {layout.expects}" for layout in shared]
    lines.append("Mixtures (mixture.name):")
    for name, mix in MIXES.items():
        lines.append(f"  {name:<12} {mix.total} questions of {', '.join(mix.shares)}; {mix.about}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    from ovlt.recipe import command_line

    argv = sys.argv[1:] if argv is None else argv
    if "--list" in argv:
        print(listing())
        return
    summary = "Datasets -> files of questions; --list shows the sources and published mixtures."
    recipe = command_line("data.prepare", summary, "mixture", argv, launcher="python")
    mixture = recipe.mixture.model_copy(update={"folder": recipe.expand(recipe.mixture.folder)})
    try:
        report = prepare(mixture, print)
    except (ValueError, OSError) as error:
        print(f"ovlt.data.prepare: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if report["short"]:
        print(f"{report['short']} fewer than asked for: the sources do not hold more")


if __name__ == "__main__":
    main()
