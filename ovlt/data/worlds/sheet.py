"""A contact sheet: pictures in a grid, each above its question, answer and caption."""

from __future__ import annotations

from PIL import Image, ImageDraw

from ovlt.data.worlds.base import Item, font

_SIZE, _LINE, _GAP = 13, 17, 18
_PAPER, _TEXT, _QUIET, _ACCENT = (255, 255, 255), (25, 25, 30), (110, 110, 118), (20, 110, 60)


def _wrap(text: str, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(_SIZE).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _notes(item: Item, width: float) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the lines under one picture, each with its colour."""
    blocks = (
        (f"{item.kind}, level {item.level}", _QUIET),
        (item.problem, _TEXT),
        (f"Answer: {item.answer}", _ACCENT),
        (item.caption, _QUIET),
    )
    return [(line, color) for text, color in blocks for line in _wrap(text, width)]


def draw_sheet(rows: list[list[Item]]) -> Image.Image:
    """Paint one row of pictures per list of items, enlarging those narrower than 240 pixels."""
    first = rows[0][0].image
    enlarge = max(1, -(-240 // first.width))
    width, height = first.width * enlarge, first.height * enlarge
    notes = [[_notes(item, width) for item in row] for row in rows]
    depth = [height + _LINE * (max(map(len, row)) + 3) for row in notes]
    sheet = Image.new(
        "RGB", (_GAP + max(map(len, rows)) * (width + _GAP), sum(depth) + _GAP), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    y = _GAP
    for row, row_notes, step in zip(rows, notes, depth, strict=True):
        pen.text((_GAP, y), row[0].family, _TEXT, font(_SIZE + 4))
        for i, (item, lines) in enumerate(zip(row, row_notes, strict=True)):
            x, top = _GAP + i * (width + _GAP), y + int(1.5 * _LINE)
            picture = item.image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (x, top))
            pen.rectangle((x - 1, top - 1, x + width, top + height), outline=(205, 205, 205))
            for j, (line, color) in enumerate(lines):
                pen.text((x, top + height + 6 + j * _LINE), line, color, font(_SIZE))
        y += step
    return sheet
