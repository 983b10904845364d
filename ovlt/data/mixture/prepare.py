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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ovlt.config import MixtureConfig
from ovlt.config.command_line import command_line
from ovlt.data.images import stored
from ovlt.data.mixture.difficulty import read_pass_rates
from ovlt.data.mixture.overlap import image_digest, load_benchmark
from ovlt.data.mixture.shares import MIXES, Entry, entries, quotas
from ovlt.data.mixture.survey import (
    Found,
    Inspector,
    Rates,
    level_of,
    levels_of,
    open_entry,
    refs,
    survey,
)
from ovlt.data.readers import SOURCES, BadRow, Row, layouts
from ovlt.data.writers import SHAREGPT_COLUMNS, write_rows

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


def prepare(mixture: MixtureConfig, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write a mixture's files and return the report. Raises ValueError: the recipe or data cannot
    be used; nothing is left in the place of a file that was there before."""
    chosen, total = entries(mixture)
    rates = read_pass_rates(mixture.pass_rates)
    levels = levels_of(mixture, chosen, rates)
    benchmark = load_benchmark(mixture.benchmarks, mixture.overlap_bits)
    inspect = Inspector(hashed=len(benchmark.hashes) > 0)
    seen: set[bytes] = set()
    found = []
    for entry in chosen:
        found.append(survey(entry, mixture, levels, rates, benchmark, inspect, seen))
        tell(_summary(entry, found[-1]))
    takes = _draw(mixture, chosen, found, total)
    if not any(take for take, _ in takes):
        raise ValueError("no question is left to write: see the counts above for the reasons")
    parts = {"train": [take - held for take, held in takes]}
    if mixture.validation:
        parts["validation"] = [held for _, held in takes]
    folder = Path(mixture.folder)
    written = {}

    def second_pass(picks: Sequence[set[int]]) -> Iterator[Row]:
        return _second_pass(chosen, picks, rates, levels, mixture.seed)

    for part, picks in parts.items():
        name = f"{part}.parquet" if mixture.images == "bytes" else f"{part}.jsonl"
        written[part] = write_rows(second_pass(picks), folder / name, COLUMNS)
        tell(f"wrote {written[part]} questions to {folder / name}")
        if mixture.sharegpt:
            talks = map(sharegpt_row, second_pass(picks))
            write_rows(talks, folder / f"{part}_sharegpt.jsonl", SHAREGPT_COLUMNS)
    if mixture.sharegpt:
        _register(folder, list(parts))
    report = _report(mixture, chosen, found, parts, levels, total, written)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


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
    train = [pick - aside for pick, aside in zip(picks, held, strict=True)]
    for _ in range(
        sum(map(len, train)) - total if total else 0
    ):  # what no image was small enough for
        largest = max(train, key=len)
        largest.remove(max(largest))
    return list(zip(train, held, strict=True))


# --- second pass: what is written ----------------------------------------------------------------


def _second_pass(
    chosen: Sequence[Entry],
    picks: Sequence[set[int]],
    rates: Rates,
    levels: dict[str, str],
    seed: int,
) -> Iterator[Row]:
    """The picked rows, the sources interleaved: any first part of the file is a mixture too."""
    streams = [_picked(entry, pick, rates) for entry, pick in zip(chosen, picks, strict=True)]
    left = [len(pick) for pick in picks]
    rng = Random(f"order/{seed}")
    while any(left):
        [number] = rng.choices(range(len(left)), weights=left)
        left[number] -= 1
        row = next(streams[number], None)
        if row is None:
            raise ValueError(f"{chosen[number].config.path} has changed while it was read")
        yield _finished(row, levels)


def _picked(entry: Entry, pick: set[int], rates: Rates) -> Iterator[Row]:
    left = len(pick)
    for index, row in enumerate(open_entry(entry, rates)[1] if pick else ()):
        if index in pick and not isinstance(row, BadRow):
            yield row
            left -= 1
            if not left:
                return


def _finished(row: Row, levels: dict[str, str]) -> Row:
    """With its images as bytes, named by their content, and every column of the file."""
    return row | {
        "images": [stored(ref, image_digest(ref).hex()) for ref in refs(row)],
        "id": str(row["id"]),
        "choices": row.get("choices") or [],
        "difficulty": level_of(row, levels),
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
    ]
    if other := found.other_level + found.other_pass_rate:
        counts.append(f"{other} of another level or pass rate, or of none")
    counts.append(f"{len(found.index)} usable")
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
    argv = sys.argv[1:] if argv is None else argv
    if "--list" in argv:
        print(listing())
        return
    summary = "Datasets -> files of questions; --list shows the sources and published mixtures."
    recipe = command_line("prepare", summary, ("mixture",), argv)
    mixture = recipe.mixture.model_copy(update={"folder": recipe.expand(recipe.mixture.folder)})
    try:
        report = prepare(mixture, print)
    except (ValueError, OSError) as error:
        print(f"ovlt prepare: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if report["short"]:
        print(f"{report['short']} fewer than asked for: the sources do not hold more")
