"""Read the names, numbers, units and lists of a written answer, exactly.

Nothing here evaluates an expression: text that is not plainly one of these forms is left to
MathRuler (``ovlt.reward.grading``). Values are ``Fraction``: no two different integers are equal.
"""

from __future__ import annotations

import re
from fractions import Fraction

_REWRITES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"[\u2010-\u2014\u2212]", "-"),
        (r"\\!|\{,\}(?=\d)", ""),
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"\\left(?![a-z])|\\right(?![a-z])", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\(?:text|textrm|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}", r" \1"),
        (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ|[º˚掳]|\{degrees?\})", "°"),
        (r"\\times(?![a-z])|\\cdot(?![a-z])|[\u00d7\u00b7\u22c5]", "*"),
        (r"\\div(?![a-z])|÷", "/"),
        (r"\\(?=[%$])|\$", ""),
        (r"°\s+(?=[CFT]\b)", "°"),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"∞", "inf"),
        (r"π", "pi"),
        (r"√\s*(\d+|[A-Za-z])", r"sqrt(\1)"),
        (r"√", "sqrt"),
        (r"\s+", " "),
    )
]


def rewrite(text: str) -> str:
    """Replace the Unicode and LaTeX spellings that MathRuler misreads by those that it reads."""
    for pattern, to in _REWRITES:
        text = pattern.sub(to, text)
    return text.strip()


_NAMED = re.compile(r"([^\W\d][\w ∠△]{0,30}(?:\([\w, ]{1,5}\))?)\s*[=≈]\s*([^=≈<>]+)")


def split_name(text: str) -> tuple[str, str]:
    """Return ("x", "5") for "x = 5", and ("", text) if nothing is named."""
    match = _NAMED.fullmatch(text)
    return (match.group(1).strip(), match.group(2).strip()) if match else ("", text)


_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:"
    rf"(?P<decimal>{_DECIMAL})(?:[eE](?P<e>[+-]?\d{{1,3}})|\s*[x*]\s*10\s*\^\s*"
    rf"\{{?\s*(?P<ten>[+-]?\d{{1,3}})\s*\}}?)?(?:\s*(?P<scale>{'|'.join(_SCALES)}))?"
    rf"|(?P<base>\d{{1,6}})\s*\^\s*\{{?\s*(?P<power>-?\d{{1,2}})\s*\}}?"
    rf"|(?:(?P<whole>\d+)(?:\s+|\s*(?=\\)))?"
    rf"(?:(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    rf"|\\frac\s*(?:\{{\s*(?P<ltop>-?\d+)\s*\}}|(?P<ltop1>\d))\s*"
    rf"(?:\{{\s*(?P<lbottom>\d+)\s*\}}|(?P<lbottom1>\d)))"
    rf")",
    re.IGNORECASE,
)


def number(text: str) -> Fraction | None:
    """Return the exact value of one written number; None for anything else."""
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        return None
    part = match.groupdict()
    if part["decimal"]:
        value = Fraction(part["decimal"].replace(",", "").rstrip(".") or "0")
        value *= Fraction(10) ** int(part["e"] or part["ten"] or 0)
        value *= 10 ** _SCALES.get((part["scale"] or "").lower(), 0)
    elif part["base"]:
        value = Fraction(int(part["base"])) ** int(part["power"])
    else:
        bottom = int(part["bottom"] or part["lbottom"] or part["lbottom1"])
        if bottom == 0:
            return None
        value = Fraction(int(part["top"] or part["ltop"] or part["ltop1"]), bottom)
        value += int(part["whole"] or 0)
    return -value if part["sign"] == "-" else value


_UNITS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "inch": "in inch",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "ounce": "oz ounce",
    "pound": "lb lbs pound",
    "ml": "ml milliliter millilitre",
    "litre": "l liter litre",
    "second": "s sec second",
    "minute": "min minute",
    "hour": "h hr hrs hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "yr yrs year",
    "degree": "° deg degree °t",  # "118°T" is a true bearing
    "celsius": "°c",
    "fahrenheit": "°f",
    "%": "% percent",
    "m/s": "m/s",
    "km/h": "km/h",
    "mph": "mph",
    "unit": "unit",
    "dollar": "dollar",
    "cent": "cent",
}
_UNIT_OF = {alias: unit for unit, aliases in _UNITS.items() for alias in aliases.split()}
_LONGEST_FIRST = sorted(_UNIT_OF, key=len, reverse=True)
_WITH_UNIT = re.compile(
    r"(?P<body>.*(?:[\d)}\].]|pi|illion|thousand|hundred))\s*"
    r"(?:(?P<word>square|sq\.?|cubic|cu\.?)\s+)?"
    rf"(?:(?P<long>{'|'.join(a for a in _LONGEST_FIRST if len(a) > 2)})(?:e?s)?"
    rf"|(?P<short>{'|'.join(a for a in _LONGEST_FIRST if len(a) <= 2)}))"
    r"\s*(?:\^?\s*\{?\s*(?P<power>[23])\s*\}?)?",
    re.IGNORECASE | re.DOTALL,
)
# MathRuler deletes these words anywhere in an answer, so "2 days" equals "2 hours" for it
UNIT_WORD = re.compile(
    "degree|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard", re.IGNORECASE
)


def split_unit(text: str) -> tuple[str, str]:
    """Return ("5", "cm^2") for "5 square centimeters", and (text, "") if it ends in no unit."""
    match = _WITH_UNIT.fullmatch(text)
    if not match:
        return text, ""
    alias = (match.group("long") or match.group("short")).lower()
    body = match.group("body").strip()
    if len(alias) == 1 and alias.isalpha() and number(body) is None:
        return text, ""  # "3x + 2m": m is a variable
    word = (match.group("word") or "").lower()
    power = match.group("power") or ("2" if word[:1] == "s" else "3" if word else "")
    return body, _UNIT_OF[alias] + (f"^{power}" if power else "")


def elements(text: str) -> tuple[str, list[str]] | None:
    """Return the brackets and elements of "(a, b)", "[a, b)", "\\{a, b\\}", "a, b", "a and b".

    The brackets are two characters, or "" without any; None for text that is not a list.
    """
    text = re.sub(r"\\([{}])", r"\1", text)
    brackets = ""
    if text[:1] in tuple("([{") and text[-1:] in tuple(")]}"):
        level = 0
        for at, char in enumerate(text):
            level += (char in "([{") - (char in ")]}")
            if level == 0:
                if at == len(text) - 1:
                    brackets, text = text[0] + text[-1], text[1:-1]
                break
    # outside brackets "1,234" is one number
    comma = "," if brackets else r"(?<!\d),|,(?!\d{3}(?!\d))"
    pieces, level, start = [], 0, 0
    separator = rf"{comma}|;|\s(?:and|or)\s"
    for match in re.finditer(rf"(?P<open>[(\[{{])|(?P<close>[)\]}}])|{separator}", text):
        level += (match.group("open") is not None) - (match.group("close") is not None)
        if level == 0 and match.lastgroup is None:  # a separator outside all brackets
            pieces.append(text[start : match.start()])
            start = match.end()
    pieces.append(text[start:])
    return (brackets, [piece.strip() for piece in pieces]) if len(pieces) > 1 else None
