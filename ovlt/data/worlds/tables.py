"""Small tables of whole numbers drawn as pictures, as in TabMWP."""

from __future__ import annotations

from random import Random
from typing import TypedDict

from PIL import Image

from ovlt.data.worlds.base import (
    INK,
    Canvas,
    Family,
    Question,
    Scene,
    fit_font,
    near_miss,
    other,
    reasoned,
)

KINDS = ("lookup", "sum_two", "difference", "column_total", "most", "count_above")
NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jane", "Kofi", "Lena")
_THEMES = ("Books read", "Goals scored", "Apples sold", "Stamps kept", "Laps swum", "Cups made")
_COLUMNS = ("Mon", "Tue", "Wed", "Thu", "Fri")
_TINTS = ((219, 232, 251), (222, 243, 226), (252, 236, 214), (240, 226, 247))

# level -> rows, columns, largest value; a column never adds up to more than 99
_LEVELS = {1: (3, 1, 9), 2: (4, 2, 15), 3: (6, 3, 16)}

_LOOKUP = (
    "What is the number for {x} on {c}?",
    "How many does the table give for {x} on {c}?",
    "Look up {x} on {c}. What is the number?",
)
_SUM = (
    "How many do {x} and {y} have together on {c}?",
    "What is the total of {x} and {y} on {c}?",
    "Add the numbers of {x} and {y} on {c}.",
)
_DIFFERENCE = (
    "How many more does {x} have than {y} on {c}?",
    "On {c}, by how many is {x} ahead of {y}?",
    "What is the difference between {x} and {y} on {c}?",
)
_TOTAL = (
    "What is the total for {c}?",
    "What do all the numbers for {c} add up to?",
    "How many are there in all on {c}?",
)
_MOST = (
    "Who has the most on {c}?",
    "Who has the largest number on {c}?",
    "Whose number for {c} is the highest?",
)
_ABOVE = (
    "How many people have more than {k} on {c}?",
    "On {c}, how many numbers are greater than {k}?",
    "Count the people with more than {k} on {c}.",
)


class TableContent(TypedDict):
    """A table of whole numbers: a row per person, a column per day."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[int]]]


def make(rng: Random, level: int, kind: str) -> Scene[TableContent]:
    num_rows, num_columns, most = _LEVELS[level]
    first = rng.randrange(len(_COLUMNS) - num_columns + 1)
    rows = [
        (name, [rng.randint(1, most) for _ in range(num_columns)])
        for name in rng.sample(NAMES, num_rows)
    ]
    content: TableContent = {
        "title": rng.choice(_THEMES),
        "columns": list(_COLUMNS[first : first + num_columns]),
        "rows": rows,
    }
    return Scene(content, rng.getrandbits(32))


def draw(scene: Scene[TableContent], width: int, height: int) -> Image.Image:
    content, look = scene.content, Random(scene.look)
    canvas = Canvas(width, height)
    pen, stroke = canvas.pen, canvas.stroke
    table = [["Name", *content["columns"]]]
    table += [[name, *map(str, values)] for name, values in content["rows"]]
    left, right = canvas.width * 0.05, canvas.width * 0.95
    top, bottom = canvas.height * 0.18, canvas.height * 0.95
    row_h = min((bottom - top) / len(table), canvas.height * 0.16)
    column_w = (right - left) / len(table[0])
    title = content["title"]
    face = fit_font([title], right - left, canvas.height * 0.09)
    pen.text((canvas.width / 2, canvas.height * 0.095), title, INK, face, anchor="mm")
    face = fit_font([text for row in table for text in row], column_w * 0.8, row_h * 0.6)
    tint = look.choice(_TINTS)
    for r, row in enumerate(table):
        for c, text in enumerate(row):
            x, y = left + c * column_w, top + r * row_h
            pen.rectangle(
                (x, y, x + column_w, y + row_h),
                tint if r == 0 else (255, 255, 255),
                (120, 120, 125),
                max(2, stroke // 2),
            )
            pen.text((x + column_w / 2, y + row_h / 2), text, INK, face, anchor="mm")
    return canvas.finish()


def caption(scene: Scene[TableContent]) -> str:
    content = scene.content
    rows = ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in content["rows"])
    return f"A table of {content['title'].lower()} on {' '.join(content['columns'])}. {rows}."


def ask(scene: Scene[TableContent], kind: str, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.content["columns"]))
    day = scene.content["columns"][index]
    values: dict[str, int] = {name: row[index] for name, row in scene.content["rows"]}
    listed = ", ".join(f"{name} {value}" for name, value in values.items())
    (x, first), (y, second) = rng.sample(list(values.items()), 2)
    if kind == "lookup":
        problem, number = rng.choice(_LOOKUP).format(x=x, c=day), first
        body = f"I find the row of {x} and the column of {day}. It holds {first}."
    elif kind == "sum_two":
        problem, number = rng.choice(_SUM).format(x=x, y=y, c=day), first + second
        body = f"{x} has {first} and {y} has {second}. {first} plus {second} is {number}."
    elif kind == "difference":
        if first <= second:
            return None
        problem, number = rng.choice(_DIFFERENCE).format(x=x, y=y, c=day), first - second
        body = f"{x} has {first} and {y} has {second}. {first} minus {second} is {number}."
    elif kind == "column_total":
        problem, number = rng.choice(_TOTAL).format(c=day), sum(values.values())
        running, steps = 0, []
        for value in values.values():
            running += value
            steps.append(f"{value} makes {running}")
        body = f"The numbers for {day}: {', '.join(steps)}."
    elif kind == "most":
        best = max(values.values())
        if list(values.values()).count(best) > 1:
            return None
        answer = next(name for name, value in values.items() if value == best)
        body = f"On {day}: {listed}. The largest is {best}."
        return reasoned(
            "table",
            rng.choice(_MOST).format(c=day),
            answer,
            other(rng, list(values), answer),
            body,
            "name",
        )
    else:
        bound = rng.choice(list(values.values())) - rng.randint(0, 1)
        above = [name for name, value in values.items() if value > bound]
        problem, number = rng.choice(_ABOVE).format(k=bound, c=day), len(above)
        body = f"On {day}: {listed}. Above {bound}: {', '.join(above) or 'nobody'}."
    return reasoned("table", problem, str(number), near_miss(rng, number), body, "number")


FAMILY = Family("tables", KINDS, (140, 168, 196), make, draw, caption, ask)
