"""Answers and captions of the synthetic world, confirmed by two independent readers: one knows only
the question and the caption, the other looks at the pixels."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from ovlt.data.worlds import synthetic
from ovlt.data.worlds.base import BACKGROUND, PALETTE
from ovlt.data.worlds.maps import CLASSES
from ovlt.data.worlds.shapes import SHAPES
from ovlt.data.worlds.synthetic import FAMILIES, WorldSpec, generate

PAIRS = [(f.name, kind) for f in FAMILIES.values() for kind in f.kinds]


def items_of(family, n=20, size=224, **more):
    return list(generate([family], "train", n, 3, WorldSpec(size), **more))


def drafts(family, n=200, kinds=None, levels=(1, 2, 3)):
    """Return items without their pictures, which take long to paint."""
    return list(synthetic._drafts([family], "train", n, 3, WorldSpec(256), kinds, levels))


# --- answers, by a second reader of caption and question -----------------------------------------


def words_in(problem, options):
    """Return the options that a question names, in order of appearance."""
    hits = [(m.start(), o) for o in options for m in re.finditer(rf"\b{o}\b", problem)]
    return [option for _, option in sorted(hits)]


def read_shapes(item):
    things = [tuple(t.split()) for t in item.caption.rstrip(".").split(", ")]
    words = "|".join((*PALETTE, *SHAPES))
    named = re.findall(rf"\b({words})(?:e?s)?\b", item.problem)
    if item.kind == "count_cs":
        return str(sum(t == tuple(named) for t in things))
    if item.kind == "more":
        return max(named, key=lambda w: sum(w in t for t in things))
    if item.kind == "count_all":
        assert not named
        return str(len(things))
    assert len(named) == (2 if item.kind == "total2" else 1)
    return str(sum(any(w in t for w in named) for t in things))


def read_bars(item):
    bars = {m[1]: int(m[2]) for m in re.finditer(r"(\w+) bar (\d)", item.caption)}
    named = words_in(item.problem, bars)
    return max(bars, key=bars.get) if item.kind == "tallest" else str(sum(bars[c] for c in named))


def read_charts(item):
    series = {}
    for part in item.caption.split(". ", 1)[1].rstrip(".").split(", "):
        name = part.split()[0]
        series[name] = [int(v) for v in re.findall(r"\d+", part)]
    end = {name: values[-1] for name, values in series.items()}
    named = words_in(item.problem, series)
    if item.kind in ("is_max", "is_min"):
        best = (max if item.kind == "is_max" else min)(end.values())
        truth = end[named[0]] == best
    elif item.kind == "greater":
        x, y = named if "Compared" not in item.problem else named[::-1]
        truth = end[x] > end[y] if "higher" in item.problem else end[x] < end[y]
    elif item.kind == "crosses":
        gaps = np.subtract(series[named[0]], series[named[1]])
        assert gaps.all()
        truth = bool((gaps[:-1] * gaps[1:] < 0).any())
    else:
        truth = end[named[0]] > series[named[0]][0]
    return "yes" if truth else "no"


def read_geometry(item):
    numbers = [int(v) for v in re.findall(r"\d+", item.caption)]
    if item.kind == "angle":
        return str(numbers[1] - numbers[0])
    if item.kind == "angle_type":
        return ("acute", "right", "obtuse")[int(np.sign(numbers[1] - numbers[0] - 90)) + 1]
    if item.kind == "missing_angle":
        return str(180 - sum(numbers))
    if item.kind == "isosceles":
        return str((180 - numbers[0]) // 2)
    if item.kind in ("ruler", "ruler_diff"):
        bars = {
            m[1]: int(m[3]) - int(m[2])
            for m in re.finditer(r"(\w+) bar from (\d+) to (\d+)", item.caption)
        }
        named = words_in(item.problem, bars)
        return str(bars[named[0]] - (bars[named[1]] if item.kind == "ruler_diff" else 0))
    w, h = numbers
    return str(2 * (w + h) if item.kind == "perimeter" else w * h)


def read_tables(item):
    head, body = item.caption.rstrip(".").split(". ")
    days = head.split(" on ")[1].split()
    rows = {row.split()[0]: [int(v) for v in row.split()[1:]] for row in body.split(", ")}
    index = days.index(words_in(item.problem, days)[0])
    column = {name: values[index] for name, values in rows.items()}
    named = [column[name] for name in words_in(item.problem, rows)]
    if item.kind == "most":
        assert sorted(column.values())[-2] < max(column.values())
        return max(column, key=column.get)
    if item.kind == "count_above":
        bound = int(re.search(r"\d+", item.problem)[0])
        return str(sum(v > bound for v in column.values()))
    return str(
        {
            "lookup": lambda: named[0],
            "sum_two": lambda: sum(named),
            "difference": lambda: named[0] - named[1],
            "column_total": lambda: sum(column.values()),
        }[item.kind]()
    )


def read_maps(item):
    classes = re.search(r"most: (.*?)\.", item.caption)[1].split(", ")
    rows = [
        [r.split() for r in row.split(", ")] for row in re.findall(r"Row \d: (.*?)\.", item.caption)
    ]
    value = {name: kind for row in rows for name, kind in row}
    place = {name: (r, c) for r, row in enumerate(rows) for c, (name, _) in enumerate(row)}
    named = words_in(item.problem, value)
    if item.kind == "class_of":
        return value[named[0]]
    if item.kind == "count_class":
        return str(list(value.values()).count(words_in(item.problem, classes)[0]))
    x, y = named if "Compared" not in item.problem else named[::-1]
    (r0, c0), (r1, c1) = place[x], place[y]
    truth = {
        "same_class": value[x] == value[y],
        "higher": classes.index(value[x]) > classes.index(value[y]),
        "borders": abs(r0 - r1) + abs(c0 - c1) == 1,
    }[item.kind]
    return "yes" if truth else "no"


READERS = {
    "shapes": read_shapes,
    "bars": read_bars,
    "charts": read_charts,
    "geometry": read_geometry,
    "tables": read_tables,
    "maps": read_maps,
}


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_answer_follows_from_caption_and_question(family, kind):
    for draft in drafts(family, 40, [kind]):
        caption = FAMILIES[family].caption(draft.scene)
        item = SimpleNamespace(**vars(draft.question), caption=caption, kind=kind)
        assert item.answer == READERS[family](item), (item.caption, item.problem)
        assert item.decoy != item.answer
        assert len(item.answer) <= 8
        assert not item.answer.isdigit() or len(item.answer) <= 2
        assert item.answer in item.short.lower() or item.answer in item.short
        assert {"direct"} < set(item.traces)
        for text in (*item.traces.values(), item.summary):
            assert text.endswith(f" {item.answer}.")
            assert "<" not in text


@pytest.mark.parametrize(("family", "kind"), [p for p in PAIRS if p[0] in ("charts", "maps")])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_yes_and_no_are_balanced(family, kind, level):
    answers = Counter(d.question.answer for d in drafts(family, kinds=[kind], levels=[level]))
    if "yes" in answers:
        assert 0.39 < answers["yes"] / 200 < 0.61


def test_tally_of_shapes_counts_what_is_asked_for():
    for item in items_of("shapes", 90, 84):
        scan, tally = item.traces["scan"], item.traces["tally"].split(". So ")[0]
        assert max(len(t.split()) for t in item.traces.values()) <= 40
        assert scan.startswith(f"I see: {item.caption}")
        entries = tally.removeprefix("I count: ").split(", ")
        # each object in order, named by its colour, its shape or both, with the counts so far
        objects = item.caption.rstrip(".").split(", ")
        names = [re.sub(r"( \d)+$", "", entry) for entry in entries]
        assert all(n == o or n in o.split() for n, o in zip(names, objects, strict=True))
        counts = [[int(n) for n in re.findall(r"\d", entry)] for entry in entries]
        for before, after in itertools.pairwise([[0] * len(counts[0]), *counts]):
            assert all(b - a in (0, 1) for a, b in zip(before, after, strict=True))
        if item.kind == "more":
            words = re.search(r"(\w+) or (\w+)", item.problem).groups()
            assert words[counts[-1].index(max(counts[-1]))] == item.answer
        else:
            assert counts[-1] == [int(item.answer)]


def test_traces_of_bars_say_what_the_listed():
    for item in items_of("bars", 60, 84):
        listed = dict(re.findall(r"(\w+) bar (\d)", item.caption))
        read = ", ".join(f"{color} {value}" for color, value in listed.items())
        tally, scan = item.traces["tally"], item.traces["scan"]
        assert tally.startswith(f"I read: {read}.")
        assert scan.startswith(f"I see: {read}.")
        named = re.findall(r"[Tt]he (\w+) bar is (\d)", tally)
        assert len(named) == {"tallest": 0, "bar_h": 1, "bar_sum": 2}[item.kind]
        assert all(listed[color] == value and color in item.problem for color, value in named)


def test_no_kind_of_shape_question_can_be_guessed():
    for kind in FAMILIES["shapes"].kinds:
        answers = Counter(d.question.answer for d in drafts("shapes", kinds=[kind], levels=[1]))
        assert answers.most_common(1)[0][1] / 200 < 0.5, (kind, answers)


# --- answers, from the pixels --------------------------------------------------------------------


def color_mask(image, color, tolerance=24):
    pixels = np.asarray(image).astype(int)
    return np.abs(pixels - PALETTE[color]).max(axis=-1) <= tolerance


def blobs(mask):
    """Number of 4-connected regions of 12 pixels or more."""
    left, count = set(zip(*np.nonzero(mask), strict=True)), 0
    while left:
        stack, size = [left.pop()], 1
        while stack:
            r, c = stack.pop()
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
                    size += 1
        count += size >= 12
    return count


@pytest.mark.parametrize(("size", "level"), [(84, 1), ((130, 97), 2), ((205, 177), 3)])
def test_shapes_in_the_pixels_are_those_of_the_caption(size, level):
    for item in items_of("shapes", 12, size, levels=[level]):
        listed = Counter(part.split()[0] for part in item.caption.rstrip(".").split(", "))
        seen = {color: blobs(color_mask(item.image, color)) for color in PALETTE}
        assert {c: n for c, n in seen.items() if n} == listed


def shape_of(mask):
    """Which shape of level 1 a mask shows, from how it fills its bounding box."""
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    half = len(box) // 2
    if box[-half:].sum() > 1.5 * box[:half].sum():
        return "triangle"
    return "square" if box.mean() > 0.93 else "circle" if box.mean() > 0.7 else "cross"


def test_caption_lists_the_cells_of_28_pixels_row_by_row():
    for item in items_of("shapes", 40, 84):
        seen = []
        for top, left in itertools.product((0, 28, 56), repeat=2):
            cell = item.image.crop((left, top, left + 28, top + 28))
            drawn = np.abs(np.asarray(cell).astype(int) - BACKGROUND).max(-1) > 100
            if drawn.any():
                (color,) = [c for c in PALETTE if color_mask(cell, c).sum() > 20]
                seen.append(f"{color} {shape_of(drawn)}")
        assert ", ".join(seen) + "." == item.caption


def test_shape_masks_tell_the_shapes_apart():
    from ovlt.data.worlds.shapes import _mask

    masks = [np.asarray(_mask(shape, 20)) > 127 for shape in SHAPES]
    for a, b in itertools.combinations(masks, 2):
        assert (a != b).mean() > 0.1


@pytest.mark.parametrize("size", [84, 101, (369, 504)])
def test_bar_heights_in_the_pixels(size):
    for item in items_of("bars", 10, size):
        listed = dict(re.findall(r"(\w+) bar (\d)", item.caption))
        tops, lefts = {}, []
        for color in listed:
            rows, columns = np.nonzero(color_mask(item.image, color, 2))
            tops[color] = rows.max() + 1 - rows.min()
            lefts.append(columns.min())
        assert lefts == sorted(lefts)
        base = item.image.height * (82 / 84 if min(item.image.size) < 168 else 0.96)
        unit = base / (9 if min(item.image.size) < 168 else 9.5)
        assert {c: str(round(t / unit)) for c, t in tops.items()} == listed
        if size == 84:
            assert all(abs(t / unit - round(t / unit)) < 0.12 for t in tops.values())


def test_pie_shares_in_the_pixels():
    pies = [i for i in items_of("charts", 60, 300) if i.caption.startswith("A pie")]
    assert len(pies) > 5
    for item in pies:
        listed = {c: int(v) for c, v in re.findall(r"(\w+) (\d+) percent", item.caption)}
        area = {c: color_mask(item.image, c, 12).sum() for c in listed}
        assert sum(area.values()) > 0.97 * np.pi * (300 * 0.45) ** 2  # slices leave no gap
        for color, share in listed.items():
            assert abs(100 * area[color] / sum(area.values()) - share) < 1


def test_chart_bars_in_the_pixels():
    charts = [i for i in items_of("charts", 60, 300) if i.caption.startswith("A bar")]
    for item in charts:
        listed = {c: int(v) for c, v in re.findall(r"(\w+) (\d+)", item.caption)}
        unit = 300 * (0.95 - 0.05) / 10
        for color, value in listed.items():
            rows = np.nonzero(color_mask(item.image, color, 12).sum(axis=1) > 20)[0]
            assert round((rows.max() + 1 - rows.min()) / unit) == value


def test_ruler_can_be_read_from_the_pixels():
    for item in items_of(
        "geometry", 20, (401, 260), kinds=["ruler", "ruler_diff"], levels=(1, 2, 3)
    ):
        unit = 401 * 0.88 / 15
        for color, first, last in re.findall(r"(\w+) bar from (\d+) to (\d+)", item.caption):
            columns = np.nonzero(color_mask(item.image, color).sum(axis=0) > 4)[0]
            assert abs((columns.min() - 401 * 0.06) / unit - int(first)) < 0.2
            assert abs((columns.max() + 1 - 401 * 0.06) / unit - int(last)) < 0.2


def test_angle_can_be_measured_in_the_pixels():
    for item in items_of("geometry", 20, 420, kinds=["angle"], levels=(1, 2, 3)):
        color = re.search(r"with (\w+) rays", item.caption)[1]
        radius = min(420 * 0.40, 420 * 0.70)
        rows, columns = np.nonzero(color_mask(item.image, color, 30))
        x, y = columns + 0.5 - 210, (420 + radius) / 2 - rows - 0.5
        far = np.hypot(x, y) > radius * 0.85
        degrees = (np.degrees(np.arctan2(y[far], x[far])) + 90) % 360
        assert abs(degrees.max() - degrees.min() - int(item.answer)) < 2.5


def test_rectangle_is_to_scale_in_the_pixels():
    for item in items_of("geometry", 20, 300, kinds=["area", "perimeter"], levels=(1, 2)):
        color, w, h = re.search(r"A (\w+) rectangle (\d+) wide and (\d+)", item.caption).groups()
        rows, columns = np.nonzero(color_mask(item.image, color))
        ratio = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
        assert abs(ratio / (int(w) / int(h)) - 1) < 0.08


def test_map_tints_in_the_pixels_follow_the_classes():
    from ovlt.data.worlds.maps import _SCALES

    for item in items_of("maps", 12, 320, levels=[2]):
        value = [
            part.split()
            for row in re.findall(r"Row \d: (.*?)\.", item.caption)
            for part in row.split(", ")
        ]
        pixels = np.asarray(item.image).astype(int)
        scale = min(
            _SCALES,
            key=lambda s: (
                np.abs(pixels[:250] - s[1]).sum(-1).min()
                + np.abs(pixels[:310] - s[0]).sum(-1).min()
            ),
        )
        assert len(value) == 9
        top, left, cell = 0.07 * 320, 0.06 * 320, (0.70 / 3 * 320, 0.88 / 3 * 320)
        for index, (_, kind) in enumerate(value):
            r, c = divmod(index, 3)
            y, x = int(top + (r + 0.75) * cell[0]), int(left + (c + 0.5) * cell[1])
            rank = CLASSES[2].index(kind)
            want = [a + (b - a) * rank / 3 for a, b in zip(*scale, strict=True)]
            assert np.abs(pixels[y, x] - want).max() < 6, (index, kind)
