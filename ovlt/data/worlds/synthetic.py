"""A seeded world of pictures with exactly known answers: questions, captions, reasoning traces.

Six image families follow the data that OpenVLThinker trains on: ``shapes`` (CLEVR, Super-CLEVR),
``bars``, ``charts`` (FigureQA), ``geometry`` (Geometry3K, GEOS), ``tables`` (TabMWP) and ``maps``
(MapQA). The same arguments give the same bytes; item i does not depend on the number of items; and
the splits are disjoint by content, because the split of a scene depends on its hash alone.

    python -m ovlt.data.worlds.synthetic --out runs/world --families charts,maps --n 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ovlt.data.worlds import FAMILIES
from ovlt.data.worlds.base import LEVELS, Item, Question, Scene, WorldSpec
from ovlt.data.worlds.files import IMAGE_TAG, write_questions, write_sft
from ovlt.data.worlds.sheet import draw_sheet
from ovlt.data.writers import FileRow

__all__ = [
    "FAMILIES",
    "Item",
    "WorldSpec",
    "base_rows",
    "contact_sheet",
    "format_response",
    "generate",
    "split_of",
    "teacher_rows",
    "trace_rows",
    "vocabulary_corpus",
    "write_questions",
    "write_sft",
]

SPLITS = ("train", "validation", "held_out")
_ATTEMPTS = 20_000  # scenes drawn for one item before its kind counts as impossible

DESCRIBE = (
    "Describe the image.",
    "What does the image show?",
    "List what you see.",
    "Give a full description of the picture.",
)
TOLD = "The image shows: {caption} {problem}"
_TOLD = (
    TOLD,
    "Description: {caption} {problem}",
    "{caption} {problem}",
)


def split_of(key: str) -> str:
    """Return the split of a scene key: 80 % train, 10 % validation, 10 % held_out."""
    bucket = int(key[:8], 16) % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


@dataclass(frozen=True)
class _Draft:
    """An item before its picture is painted."""

    id: str
    family: str
    kind: str
    level: int
    key: str
    scene: Scene[Any]
    question: Question


def _drafts(
    families: Mapping[str, float] | Sequence[str],
    split: str,
    n: int,
    seed: int,
    spec: WorldSpec,
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
) -> Iterator[_Draft]:
    weights = _family_weights(families)
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}': choose among {', '.join(SPLITS)}")
    chosen_levels = tuple(levels) if levels else (spec.difficulty,)
    if not set(chosen_levels) <= set(LEVELS):
        raise ValueError(f"levels {chosen_levels} do not all exist: choose among 1, 2, 3")
    active = [name for name, weight in weights.items() if weight > 0]
    usable = {name: _usable_kinds(name, kinds, max(chosen_levels), spec) for name in active}
    for index in range(n):
        rng = Random(f"ovlt/{seed}/{split}/{index}")  # of its own, so that item i stands alone
        name = rng.choices(active, [weights[name] for name in active])[0]
        kind, level = rng.choice(usable[name]), rng.choice(chosen_levels)
        yield _draft(rng, name, kind, level, split, f"{name}-{split}-{seed}-{index:06d}")


def _family_weights(families: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Return the weight of each image family. Raises ValueError."""
    if isinstance(families, str):
        raise ValueError(f"families must be a list or a table of weights: write ['{families}']")
    weights = dict(families) if isinstance(families, Mapping) else dict.fromkeys(families, 1.0)
    unknown = sorted(set(weights) - set(FAMILIES))
    if unknown or not weights:
        raise ValueError(f"unknown or no families {unknown}: choose among {', '.join(FAMILIES)}")
    return _checked(weights, "family weights")


def _usable_kinds(name: str, kinds: Sequence[str] | None, level: int, spec: WorldSpec) -> list[str]:
    """Return the kinds of question to ask about an image family.

    Raises ValueError: none of ``kinds``, or the images are too small to be read at this level.
    """
    family = FAMILIES[name]
    usable = [kind for kind in family.kinds if kinds is None or kind in kinds]
    if not usable:
        raise ValueError(f"'{name}' has none of these kinds: it has {', '.join(family.kinds)}")
    if min(spec.width, spec.height) < family.min_side[level - 1]:
        raise ValueError(
            f"'{name}' at level {level} is not legible at size {spec.size}: "
            f"use at least {family.min_side[level - 1]} pixels, or a lower level"
        )
    return usable


def _draft(rng: Random, name: str, kind: str, level: int, split: str, id: str) -> _Draft:
    family = FAMILIES[name]
    # Each attempt asks with the same dice. With fresh ones, what is rare in a scene (a crossing)
    # would be rare among the answers too.
    dice = rng.getrandbits(64)
    for _ in range(_ATTEMPTS):
        scene = family.make(rng, level, kind)
        key = scene.key(name)
        if split_of(key) != split:
            continue
        if (question := family.ask(scene, kind, Random(dice))) is not None:
            return _Draft(id, name, kind, level, key, scene, question)
    raise RuntimeError(f"no scene of {name}/{kind} at level {level} falls into '{split}'")


def generate(
    families: Mapping[str, float] | Sequence[str],
    split: str,
    n: int,
    seed: int,
    spec: WorldSpec | None = None,
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
) -> Iterator[Item]:
    """Yield ``n`` items of a mixture of image families.

    Args:
        families: names, or names with weights (any positive scale).
        split: "train", "validation" or "held_out"; disjoint by content for any seeds.
        spec: size in pixels and difficulty; 84 x 84 at level 1 by default.
        kinds: the kinds of question to ask, of any image family; all by default.
        levels: levels to draw from evenly; by default ``spec.difficulty`` alone.

    Raises:
        ValueError: an unknown name, or a size at which an image family cannot be read.
    """
    spec = spec or WorldSpec()
    for draft in _drafts(families, split, n, seed, spec, kinds, levels):
        family, question = FAMILIES[draft.family], draft.question
        yield Item(
            id=draft.id,
            family=draft.family,
            kind=draft.kind,
            level=draft.level,
            problem=question.problem,
            answer=question.answer,
            image=family.draw(draft.scene, spec.width, spec.height),
            caption=family.caption(draft.scene),
            short=question.short,
            traces=question.traces,
            summary=question.summary,
            key=draft.key,
            decoy=question.decoy,
        )


def format_response(reasoning: str, summary: str, answer: str) -> str:
    """Return a response in the format of the task, on one line."""
    return f"<think>{reasoning}</think> {summary} <answer>{answer}</answer>"


def _weighted(rng: Random, shares: Mapping[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _checked(shares: Mapping[str, float], what: str) -> dict[str, float]:
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"{what} {dict(shares)} must be >= 0, with a sum above 0")
    return dict(shares)


def _row(
    item: Item, id: str, user: str, assistant: str, with_image: bool, **marks: str | bool
) -> FileRow:
    return {
        "messages": [
            {"role": "user", "content": f"{IMAGE_TAG}{user}" if with_image else user},
            {"role": "assistant", "content": assistant},
        ],
        "images": [item.image] if with_image else [],
        "source": item.family,
        "id": id,
        **marks,
    }


def _swap_end(text: str, answer: str, decoy: str) -> str:
    """Return the text with the decoy in place of the answer that ends it."""
    assert text.endswith(f"{answer}."), text
    return f"{text[: -len(answer) - 1]}{decoy}."


def trace_rows(
    items: Iterable[Item], styles: Mapping[str, float], seed: int, wrong_share: float = 0.0
) -> Iterator[FileRow]:
    """Yield one SFT row per item: the question with its image, and a formatted response.

    ``styles`` are shares per style of trace. A style that an item lacks passes its share to
    ``steps`` if the item has that, and to the item's other styles otherwise. A share
    ``wrong_share`` of the rows concludes with a wrong answer. Each row has the marks ``style`` and
    ``correct``, and its id ends in the style and, if wrong, "-wrong".
    """
    _checked(styles, "styles")
    if not 0 <= wrong_share <= 1:
        raise ValueError(f"wrong_share {wrong_share} must lie between 0 and 1")
    for item in items:
        rng = Random(f"trace/{seed}/{item.id}")
        shares = {style: share for style, share in styles.items() if style in item.traces}
        if "steps" in item.traces:
            lost = sum(share for style, share in styles.items() if style not in item.traces)
            shares["steps"] = shares.get("steps", 0.0) + lost
        if sum(shares.values()) <= 0:
            raise ValueError(
                f"'{item.family}' has no trace of the styles {', '.join(styles)}: "
                f"add one of {', '.join(item.traces)}"
            )
        style = _weighted(rng, shares)
        reasoning, summary, answer = item.traces[style], item.summary, item.answer
        correct = rng.random() >= wrong_share
        if not correct:
            reasoning = _swap_end(reasoning, answer, item.decoy)
            summary, answer = _swap_end(summary, answer, item.decoy), item.decoy
        yield _row(
            item,
            f"{item.id}-{style}" + ("" if correct else "-wrong"),
            item.problem,
            format_response(reasoning, summary, answer),
            with_image=True,
            style=style,
            correct=correct,
        )


def teacher_rows(
    items: Iterable[Item],
    styles: Mapping[str, float],
    seed: int,
    wrong_share: float = 0.0,
    reflections: float = 0.0,
) -> Iterator[FileRow]:
    """Yield the rows of ``trace_rows`` with the caption in place of the image.

    They train a text-only teacher, which is prompted with ``TOLD``. A share ``reflections`` of the
    traces repeats its reasoning once.
    """
    for item in items:
        (row,) = trace_rows([item], styles, seed, wrong_share)
        user = TOLD.format(caption=item.caption, problem=item.problem)
        reply = row["messages"][1]
        if Random(f"reflections/{seed}/{item.id}").random() < reflections:
            think, end, rest = reply["content"].partition("</think>")
            again = think.removeprefix("<think>")
            reply = reply | {"content": f"{think} Wait, once more. {again}{end}{rest}"}
        yield row | {"messages": [{"role": "user", "content": user}, reply], "images": []}


def base_rows(items: Iterable[Item], shares: Mapping[str, float], seed: int) -> Iterator[FileRow]:
    """Yield one row per item for the base model, which must not learn the response format.

    ``shares`` are over "caption" (image -> its caption), "short" (image and question -> a short
    sentence) and "text" (caption and question, no image -> reasoning in the item's first style, the
    most explicit one, and the answer in words).
    """
    unknown = sorted(set(_checked(shares, "shares")) - {"caption", "short", "text"})
    if unknown:
        raise ValueError(f"unknown base rows {unknown}: choose among caption, short, text")
    for item in items:
        rng = Random(f"base/{seed}/{item.id}")
        what = _weighted(rng, shares)
        id = f"{item.id}-{what}"
        if what == "caption":
            yield _row(item, id, rng.choice(DESCRIBE), item.caption, with_image=True)
        elif what == "short":
            yield _row(item, id, item.problem, item.short, with_image=True)
        else:
            user = rng.choice(_TOLD).format(caption=item.caption, problem=item.problem)
            style = next(style for style in item.traces if style != "direct")
            yield _row(item, id, user, f"{item.traces[style]} {item.short}", with_image=False)


def vocabulary_corpus(
    families: Sequence[str] = ("shapes", "bars"), n: int = 3000, levels: Sequence[int] = (1,)
) -> Iterator[str]:
    """Yield the texts of ``n`` training items, without painting them; the same for every caller.

    Enough for a tokenizer to see each template and word.
    """
    rng = Random("vocabulary")
    yield from DESCRIBE
    for draft in _drafts(families, "train", n, 0, WorldSpec(size=1024), levels=levels):
        question, caption = draft.question, FAMILIES[draft.family].caption(draft.scene)
        yield question.problem
        yield caption
        yield question.short
        yield rng.choice(_TOLD).format(caption=caption, problem=question.problem)
        for trace in dict.fromkeys(question.traces.values()):
            yield format_response(trace, question.summary, question.answer)


def contact_sheet(
    path: str | Path,
    per_family: int = 6,
    spec: WorldSpec | None = None,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    levels: Sequence[int] | None = None,
) -> None:
    """Write one PNG: a row per image family, each picture above its question and caption."""
    spec = spec or WorldSpec(size=336, difficulty=2)
    rows = [
        list(generate([name], "train", per_family, seed, spec, levels=levels)) for name in families
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(rows).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ovlt.data.worlds.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help="image families, separated by commas"
    )
    parser.add_argument("--n", type=int, default=1000, help="number of questions")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other items")
    parser.add_argument("--size", default="336", help="pixels: 336, or 672x504 (width x height)")
    parser.add_argument(
        "--levels", default="1", help="levels of difficulty (1 to 3), separated by commas"
    )
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--format", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--contact-sheet", action="store_true", help="also draw contact_sheet.png")
    args = parser.parse_args(argv)
    try:
        sides = [int(side) for side in args.size.lower().split("x")]
        if len(sides) > 2:
            raise ValueError(f"size '{args.size}' must be like 336 or 672x504")
        spec = WorldSpec(sides[0] if len(sides) == 1 else (sides[0], sides[1]))
        families, levels = args.families.split(","), [int(v) for v in args.levels.split(",")]
        path = args.out / f"{args.split}.{args.format}"
        items = generate(families, args.split, args.n, args.seed, spec, levels=levels)
        print(f"wrote {write_questions(items, path)} questions to {path}")
        if args.contact_sheet:
            sheet = args.out / "contact_sheet.png"
            contact_sheet(sheet, 4, spec, args.seed, families, levels)
            print(f"wrote {sheet}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
