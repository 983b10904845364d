"""The command ``ovlt prepare``: public datasets -> files of questions, by a recipe's [mixture].

    ovlt prepare my.toml --mixture.name=v2-medium
    ovlt prepare --list

It writes train.parquet (EasyR1's columns; with mixture.validation also validation.parquet), with
mixture.sharegpt the files of LLaMA-Factory, and report.json: the rows of each source, and how many
were left out and why.

There are two passes over the sources, so that memory does not grow with the images: the first
hashes every question and decides, the second reads again and writes the chosen rows. The draw takes
the rows with the lowest hash of seed and content: the same rows whatever else the mixture holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TypedDict

from ovlt.config import MixtureConfig
from ovlt.config.command_line import command_line
from ovlt.data.image_refs import stored
from ovlt.data.mixture.difficulty import read_pass_rates
from ovlt.data.mixture.overlap import image_digest, load_benchmark
from ovlt.data.mixture.shares import MIXES, Entry, entries, quotas
from ovlt.data.mixture.survey import (
    Inspector,
    Rates,
    SourceSurvey,
    level_of,
    levels_of,
    open_entry,
    pass_rate_of,
    refs,
    survey,
    with_pass_rate,
)
from ovlt.data.readers import SOURCES, BadRow, QuestionRow, layouts
from ovlt.data.writers import SHAREGPT_COLUMNS, FileRow, write_rows
from ovlt.system.files import write_whole

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


class SourceReport(TypedDict):
    """What became of the rows of one source."""

    source: str
    path: str
    layout: str
    share: float
    cap: int
    level: str
    read: int
    bad: dict[str, int]  # reason -> rows
    duplicates: int
    in_benchmark: dict[str, int]  # reason -> rows
    other_level: int
    other_pass_rate: int
    usable: int
    written: dict[str, int]  # train, validation -> rows


class Report(TypedDict):
    """The content of report.json."""

    mixture: str
    seed: int
    asked: int  # the total that the recipe asks for; 0: all
    written: dict[str, int]
    short: int  # so many fewer than asked for
    benchmarks: list[str]
    overlap_bits: int
    sources: list[SourceReport]


def prepare(mixture: MixtureConfig, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Write the files of a mixture and return the report; ``tell`` is given progress, in lines.

    Raises ValueError if the recipe or the data cannot be used. A file of an earlier run stays as it
    is until its new content is complete.
    """
    chosen, total = entries(mixture)
    rates = read_pass_rates(mixture.pass_rates)
    levels = levels_of(mixture, chosen, rates)
    benchmark = load_benchmark(mixture.benchmarks, mixture.overlap_bits)
    inspect = Inspector(hashed=len(benchmark.hashes) > 0)
    seen: set[bytes] = set()
    surveys = []
    for entry in chosen:
        surveys.append(survey(entry, mixture, levels, rates, benchmark, inspect, seen))
        tell(_summary(entry, surveys[-1]))
    takes = _draw(mixture, chosen, surveys, total)
    if not any(take for take, _ in takes):
        raise ValueError("no question is left to write: see the counts above for the reasons")
    parts = {"train": [take - held for take, held in takes]}
    if mixture.validation:
        parts["validation"] = [held for _, held in takes]
    folder = Path(mixture.folder)
    written = {}

    def second_pass(picks: Sequence[set[int]]) -> Iterator[FileRow]:
        streams = [_picked(*of, rates) for of in zip(chosen, picks, surveys, strict=True)]
        return _second_pass(chosen, streams, list(map(len, picks)), levels, mixture.seed)

    for part, picks in parts.items():
        name = f"{part}.parquet" if mixture.images == "bytes" else f"{part}.jsonl"
        written[part] = write_rows(second_pass(picks), folder / name, COLUMNS)
        tell(f"wrote {written[part]} questions to {folder / name}")
        if mixture.sharegpt:
            conversations = map(sharegpt_row, second_pass(picks))
            write_rows(conversations, folder / f"{part}_sharegpt.jsonl", SHAREGPT_COLUMNS)
    if mixture.sharegpt:
        _register(folder, list(parts))
    report = _report(mixture, chosen, surveys, parts, levels, total, written)
    _write_indented(folder / "report.json", report)
    return report


def _write_indented(path: Path, content: object) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def _draw(
    mixture: MixtureConfig, chosen: Sequence[Entry], surveys: Sequence[SourceSurvey], total: int
) -> list[tuple[set[int], set[int]]]:
    """Return, for each source, the places of the rows to train on and of those held back."""
    usable = [len(one.index) for one in surveys]
    limits = [min(n, entry.cap or n) for entry, n in zip(chosen, usable, strict=True)]
    target = total + mixture.validation if total else 0
    sizes = quotas(target, [entry.share for entry in chosen], limits)
    if mixture.validation and sum(sizes) <= mixture.validation:
        raise ValueError(
            f"mixture.validation = {mixture.validation} leaves nothing to train on: there are "
            f"{sum(sizes)} questions"
        )
    picks = []
    by_image: dict[int, list[tuple[int, int]]] = {}
    for number, (size, one) in enumerate(zip(sizes, surveys, strict=True)):
        drawn = sorted(range(len(one.index)), key=one.rank.__getitem__)[:size]
        picks.append({one.index[place] for place in drawn})
        for place in drawn:
            by_image.setdefault(one.image[place], []).append((number, one.index[place]))
    validation = _hold_back(by_image, len(chosen), mixture.validation)
    train = [pick - held for pick, held in zip(picks, validation, strict=True)]
    # Too few were held back if every image left has more questions than there was room for.
    for _ in range(sum(map(len, train)) - total if total else 0):
        largest = max(train, key=len)
        largest.remove(max(largest))
    return list(zip(train, validation, strict=True))


def _hold_back(
    by_image: dict[int, list[tuple[int, int]]], num_sources: int, count: int
) -> list[set[int]]:
    """Return, for each source, the places of at most ``count`` rows: all of an image, or none.

    ``by_image`` maps a seeded hash of an image to its questions, (number of the source, place).
    """
    held: list[set[int]] = [set() for _ in range(num_sources)]
    for image in sorted(by_image):  # by the hash, so at random
        if len(by_image[image]) <= count:
            for number, place in by_image[image]:
                held[number].add(place)
            count -= len(by_image[image])
    return held


def _second_pass(
    chosen: Sequence[Entry],
    streams: Sequence[Iterator[QuestionRow]],
    left: list[int],
    levels: dict[str, str],
    seed: int,
) -> Iterator[FileRow]:
    """Yield the picked rows, interleaved: the beginning of the file is a mixture of all sources."""
    rng = Random(f"order/{seed}")
    while any(left):
        [number] = rng.choices(range(len(left)), weights=left)
        left[number] -= 1
        row = next(streams[number], None)
        if row is None:
            raise ValueError(f"{chosen[number].config.path} changed while it was read: start again")
        yield _finished(row, levels)


def _picked(
    entry: Entry, pick: set[int], survey: SourceSurvey, rates: Rates
) -> Iterator[QuestionRow]:
    left = len(pick)
    for index, row in enumerate(open_entry(entry)[1] if pick else ()):
        if index in pick and not isinstance(row, BadRow):
            row["id"] = survey.renamed.get(index, row["id"])
            yield with_pass_rate(row, rates)
            left -= 1
            if not left:
                return


def _finished(row: QuestionRow, levels: dict[str, str]) -> FileRow:
    """Return every column of the file, images as bytes and named by their content."""
    return {
        "problem": row["problem"],
        "answer": row["answer"],
        "images": [stored(ref, image_digest(ref).hex()) for ref in refs(row)],
        "source": row["source"],
        "id": row["id"],
        "kind": row["kind"],
        "choices": row["choices"],
        "difficulty": level_of(row, levels),
        "pass_rate": pass_rate_of(row),
    }


def sharegpt_row(row: FileRow) -> FileRow:
    """Return a question and its bare answer as a conversation for LLaMA-Factory."""
    messages = [
        {"role": "user", "content": row["problem"]},
        {"role": "assistant", "content": f"<answer>{row['answer']}</answer>"},
    ]
    return {name: row[name] for name in ("images", "source", "id")} | {"messages": messages}


def _register(folder: Path, parts: Sequence[str]) -> None:
    """Write dataset_info.json, in which LLaMA-Factory finds the files and their columns."""
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
    _write_indented(folder / "dataset_info.json", info)


def _summary(entry: Entry, result: SourceSurvey) -> str:
    counts = [
        f"{result.read} read",
        f"{sum(result.bad.values())} bad",
        f"{result.duplicates} duplicates",
        f"{sum(result.overlap.values())} in a benchmark",
    ]
    if result.renamed:
        counts.append(f"{len(result.renamed)} ids repeat and have '#' and a number added")
    if other := result.other_level + result.other_pass_rate:
        counts.append(f"{other} of another level or pass rate, or of none")
    counts.append(f"{len(result.index)} usable")
    lines = [f"{entry.name} ({result.layout}): {', '.join(counts)}"]
    lines += [f"  {n} x {reason}" for reason, n in (result.bad + result.overlap).most_common()]
    return "\n".join(lines)


def _report(
    mixture: MixtureConfig,
    chosen: Sequence[Entry],
    surveys: Sequence[SourceSurvey],
    parts: dict[str, list[set[int]]],
    levels: dict[str, str],
    total: int,
    written: dict[str, int],
) -> Report:
    sources: list[SourceReport] = [
        {
            "source": entry.name,
            "path": entry.config.path,
            "layout": one.layout,
            "share": entry.share,
            "cap": entry.cap,
            "level": levels.get(entry.name, ""),
            "read": one.read,
            "bad": dict(one.bad.most_common()),
            "duplicates": one.duplicates,
            "in_benchmark": dict(one.overlap.most_common()),
            "other_level": one.other_level,
            "other_pass_rate": one.other_pass_rate,
            "usable": len(one.index),
            "written": {part: len(picks[i]) for part, picks in parts.items()},
        }
        for i, (entry, one) in enumerate(zip(chosen, surveys, strict=True))
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
    """Return a text with every source and its layouts, and every published mixture."""
    lines = ["Sources (mixture.sources.source) and the layouts that are read:"]
    shared = layouts(SOURCES["geos"])
    for source in SOURCES.values():
        lines.append(f"  {source.name:<12} {source.title}")
        lines += [f"    {one.expects}" for one in layouts(source) if one not in shared]
    lines.append("  every source:")
    lines += [f"    {layout.expects}" for layout in shared]
    lines.append("Mixtures (mixture.name):")
    for name, mix in MIXES.items():
        lines.append(f"  {name:<12} {mix.total} questions of {', '.join(mix.shares)}; {mix.about}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``ovlt prepare`` with these words; a mistake ends the process with one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    if "--list" in argv:
        print(listing())
        return
    summary = (
        "Draw a mixture of public datasets into files of questions; --list shows the\n"
        "datasets, the layouts in which they are read, and the published mixtures."
    )
    recipe = command_line("prepare", summary, ("mixture",), argv)
    mixture = recipe.mixture.model_copy(update={"folder": recipe.expand(recipe.mixture.folder)})
    try:
        report = prepare(mixture, print)
    except (ValueError, OSError) as error:
        print(f"ovlt prepare: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if report["short"]:
        print(f"{report['short']} fewer than asked for: the sources do not hold more")
