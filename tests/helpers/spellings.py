"""The same answer in many spellings, and answers that differ, drawn from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

FULL_WIDTH = str.maketrans("0123456789/", "０１２３４５６７８９／")
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
VULGAR = {Fraction(1, 2): "½", Fraction(1, 4): "¼", Fraction(3, 4): "¾", Fraction(2, 3): "⅔"}
SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)


def decimal(value: Fraction) -> str | None:
    """Return the value as a decimal if it ends within ten digits."""
    digits = next((n for n in range(11) if (value * 10**n).denominator == 1), None)
    if digits is None:
        return None
    text = f"{abs(value * 10**digits).numerator:0{digits + 1}d}"
    whole, part = (text[:-digits], text[-digits:]) if digits else (text, "")
    return ("-" if value < 0 else "") + whole + (f".{part}" if part else "")


def number_spellings(value: Fraction) -> list[str]:
    """Return spellings of one rational number."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    top, bottom = size.numerator, size.denominator
    texts = [f"{sign}{3 * top}/{3 * bottom}", rf"{sign}\frac{{{top}}}{{{bottom}}}"]
    texts += [rf"\frac{{{sign}{top}}}{{{bottom}}}", rf"{sign}\dfrac{{{2 * top}}}{{{2 * bottom}}}"]
    texts += [f"{sign}{top} / {bottom}", f"{sign}{top}/{bottom}".translate(FULL_WIDTH)]
    whole, rest = divmod(top, bottom)
    if rest and whole:
        texts += [
            f"{sign}{whole} {rest}/{bottom}",
            rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}",
            rf"{sign}{whole} \tfrac{{{rest}}}{{{bottom}}}",
        ]
        if vulgar := VULGAR.get(Fraction(rest, bottom)):
            texts.append(f"{sign}{whole}{vulgar}")
    elif vulgar := VULGAR.get(size):
        texts.append(sign + vulgar)
    if written := decimal(value):
        places = len(written.partition(".")[2])
        texts += [written, written.replace("-", "\u2212"), written.translate(ARABIC)]
        texts.append(written + ("0" if places else ".0"))
        texts += [rf"{decimal(value * 100)} \times 10^{{-2}}", f"{decimal(value / 1000)}e3"]
        texts.append(f"{decimal(value * 1000)}×10{'-3'.translate(SUPERSCRIPT)}")
        texts += [rf"{decimal(value * 100)}\%", f"{decimal(value * 100)} percent"]
    if bottom == 1:
        texts += [f"{sign}{top:,}", f"{sign}{top}."]
        if top >= 1000:
            texts += [f"{sign}{top:,}".replace(",", " "), f"{sign}{top:,}".replace(",", r"\,")]
        if top <= 12 and value >= 0:
            texts += [SMALL[top], SMALL[top].capitalize()]
    return texts


def surd_spellings(a: int, b: int, c: int, d: int) -> list[str]:
    """Return spellings of (a + b√c) / d."""
    return [
        rf"\frac{{{a}+{b}\sqrt{{{c}}}}}{{{d}}}",
        rf"\frac{{{b}\sqrt{c}+{a}}}{{{d}}}" if c < 10 else rf"\frac{{{b}\sqrt{{{c}}}+{a}}}{{{d}}}",
        rf"\frac{{{a}}}{{{d}}}+\frac{{{b}}}{{{d}}}\sqrt{{{c}}}",
        f"({a}+{b}sqrt({c}))/{d}",
        f"({a} + {b}√{c})/{d}",
        rf"({2 * a}+{b}\sqrt{{{4 * c}}})/({2 * d})",
        rf"\frac{{1}}{{{d}}}({a}+{b}\sqrt{{{c}}})",
    ]


def polynomial_spellings(a: int, b: int) -> list[str]:
    """Return spellings of (x + a)(x - b)."""
    return [
        f"(x+{a})(x-{b})",
        f"(x - {b})(x + {a})",
        f"x^2{a - b:+d}x-{a * b}",
        f"x²{a - b:+d}*x-{a * b}",
        rf"x^{{2}} - {a * b} {a - b:+d} \cdot x",
        rf"\frac{{2x^2{2 * (a - b):+d}x-{2 * a * b}}}{{2}}",
    ]


UNITS = [
    ["cm", r"\text{ cm}", r"\mathrm{~cm}", "centimeters", "centimetres"],
    ["m/s", r"\text{ m/s}", "meters per second", "m s^{-1}", "m·s⁻¹"],
    ["cm^2", "cm²", "square centimeters", r"\text{ cm}^2", "sq. cm"],
    ["kg", r"\,\text{kg}", "kilograms", "Kg"],
    ["Ω", r"\Omega", "ohms"],
    ["°", r"^\circ", r"^{\circ}", "degrees", "deg"],
    ["N", r"\text{ N}", "newtons"],
    ["kWh", "kilowatt hours"],
    ["hours", "h", "hr"],
    ["mol", "moles"],
]


def with_unit(value: str, unit: str) -> str:
    """Return a number and its unit as people write them."""
    return f"{value}{unit}" if unit[:1] in "\\^°" else f"{value} {unit}"


def dressings() -> list[Callable[[str], str]]:
    """Return what people put around an answer."""
    return [
        str,
        lambda text: f"${text}$" if "%" not in text and "$" not in text else text,
        lambda text: rf"\boxed{{{text}}}",
        lambda text: f"**{text}**",
        lambda text: f" {text} ",
        lambda text: f"The answer is {text}.",
        lambda text: f"Answer: {text}",
        lambda text: rf"\( {text} \)",
    ]


def option_spellings(letter: str, text: str) -> list[str]:
    """Return ways to choose an option whose text is ``text``."""
    return [
        *(
            letter,
            f"({letter})",
            f"{letter}.",
            f"[{letter}]",
            f"**{letter}**",
            f"({letter}) {text}",
        ),
        *(f"{letter}. {text}", f"{letter}: {text}", f"{letter}) {text}", f"{letter}\n{text}"),
        *(
            f"Option {letter}",
            f"The answer is {letter}.",
            f"The correct answer is ({letter}) {text}",
        ),
        *(f"{letter}, because it is {text}", f"{letter} because of the {text}", f"<{letter}>"),
        *(rf"\text{{{letter}}}", rf"\boxed{{\text{{({letter})}}}}", f"{letter} - {text}"),
        *(f"I think it is {letter}", f"答案是{letter}", f"Choice {letter}", f"${letter}$"),
    ]


def rationals(seed: int, count: int) -> Iterator[Fraction]:
    """Yield positive and negative whole numbers, decimals and fractions."""
    draw = random.Random(seed)
    for at in range(count):
        bottom = draw.choice([1, 1, 2, 3, 4, 5, 7, 8, 10, 12, 100])
        value = Fraction(draw.randint(1, 10 ** draw.randint(1, 5)), bottom)
        yield -value if at % 4 == 3 else value
