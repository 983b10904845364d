"""Read units of measurement by pint's definitions, and money.

A unit is its base units and a factor, so "100 cm" is "1 m" and "5 N" is not "5 J". Case matters
as in the SI ("MW" is not "mW"); only a word that pint does not know is tried in lower case ("KG").
Temperatures on scales with an offset are units of their own: "27 °C" and "27 °F" are not compared.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pint


@dataclass(frozen=True)
class Measure:
    """Powers of base units, sorted by name, and the factor to them."""

    powers: tuple[tuple[str, int], ...]
    factor: Fraction = Fraction(1)


PERCENT = Measure((("%", 1),))
_OWN = {
    **dict.fromkeys(("%", "percent", "pct", "percentage"), PERCENT),
    **dict.fromkeys(
        ("°", "deg", "degs", "degree", "degrees", "°T", "度"), Measure((("degree", 1),))
    ),
    **dict.fromkeys(("°C", "degC", "celsius", "centigrade", "摄氏度"), Measure((("celsius", 1),))),
    **dict.fromkeys(("°F", "degF", "fahrenheit", "华氏度"), Measure((("fahrenheit", 1),))),
    "Nm": Measure((("kilogram", 1), ("meter", 2), ("second", -2))),
    **dict.fromkeys(("unit", "units"), Measure((("unit", 1),))),
    **dict.fromkeys(("$", "usd", "dollar", "dollars", "bucks"), Measure((("dollar", 1),))),
    **dict.fromkeys(("¢", "cent", "cents"), Measure((("dollar", 1),), Fraction(1, 100))),
    **dict.fromkeys(("€", "eur", "euro", "euros"), Measure((("euro", 1),))),
    **dict.fromkeys(("£", "gbp"), Measure((("pound sterling", 1),))),
    **dict.fromkeys(("¥", "yen", "jpy"), Measure((("yen", 1),))),
    **dict.fromkeys(("yuan", "rmb", "cny", "元"), Measure((("yuan", 1),))),
    **dict.fromkeys(("₹", "rs", "inr", "rupee", "rupees"), Measure((("rupee", 1),))),
    **dict.fromkeys(("₩", "won", "krw"), Measure((("won", 1),))),
    **dict.fromkeys(("₽", "ruble", "rubles"), Measure((("ruble", 1),))),
}
_CHINESE = {
    "毫米": "mm", "厘米": "cm", "分米": "dm", "千米": "km", "公里": "km", "米": "m", "毫克": "mg",
    "千克": "kg", "公斤": "kg", "克": "g", "吨": "tonne", "毫升": "mL", "升": "L", "小时": "h",
    "分钟": "minute", "秒": "s", "天": "day", "年": "year", "个月": "month", "周": "week",
}  # fmt: skip
MONEY = "$€£¥₹₩₽"
# A letter or two after a number is algebra far more often than a rare unit ("2a" is no 2 years).
_SHORT = set(
    "m g s h t l L N J W V A K C F T H B Ω ft in yd mi lb oz hr yr hp Pa Hz eV cd lm lx Wb Sv Gy "
    "Bq kn cc pt qt ha ly au AU px Å sr dB".split()
)
_PREFIXES = {"n", "µ", "μ", "u", "m", "c", "d", "k", "M", "G", "T", "p", "h"}
_PREFIXED = set(
    "m g s t l L N J W V A C F T H B Ω Hz Pa eV S mol cd lm lx Wb Sv Gy Bq bar cal Wh "
    "bit rad ohm b".split()
)
_LONG_PREFIX = re.compile(
    "(?:pico|nano|micro|milli|centi|deci|deca|hecto|kilo|mega|giga|tera)[a-z]{3}", re.IGNORECASE
)


@functools.cache
def _registry() -> pint.UnitRegistry[Fraction]:
    # Imported here and not at the top of the file: 0.3 s that most answers do not need.
    import pint

    return pint.UnitRegistry(non_int_type=Fraction)


def warm_up() -> None:
    """Read pint's definitions now."""
    _pint_unit("kilometer")


@functools.lru_cache(4096)
def _word(word: str) -> Measure | None:
    """Return the unit that a word names, else None."""
    forms = [word]
    if len(word) > 1:  # "KG", "hz"; but "M" is no metre
        forms += [word.lower(), _case_free().get(word.lower(), "")]
    for form in forms:
        if form and (unit := _OWN.get(form) or _pint_unit(form)):
            return unit
    return None


@functools.cache
def _case_free() -> dict[str, str]:
    """Return the symbols that no other symbol equals but for case, by their lower case."""
    symbols = {prefix + unit for prefix in _PREFIXES for unit in _PREFIXED} | _SHORT
    count = Counter(symbol.lower() for symbol in symbols)
    return {symbol.lower(): symbol for symbol in symbols if count[symbol.lower()] == 1}


def _pint_unit(word: str) -> Measure | None:
    if (len(word) < 3 and word not in _SHORT and not _is_prefixed(word)) or word == "pi":
        return None
    registry = _registry()
    for prefix, name, _ in registry.parse_unit_name(word):
        if prefix and not (_LONG_PREFIX.match(word) or _is_prefixed(word)):
            continue  # "amps" is no attometre per second
        factor, base = registry.get_base_units(prefix + name)
        if not base._units and name not in ("radian", "bit", "count"):  # a constant
            return None
        powers = {str(key): int(power) for key, power in base._units.items() if power == int(power)}
        if len(powers) == len(base._units):
            return Measure(tuple(sorted(powers.items())), Fraction(factor))
    return None


def _is_prefixed(word: str) -> bool:
    return word[:1] in _PREFIXES and word[1:] in _PREFIXED


_TOKEN = re.compile(
    r"\s*(?:(?P<over>/|\bper\b|每)|(?P<times>[*.\u00b7]|(?<=[a-z])-(?=[a-z]))|(?P<squared>squared)|(?P<cubed>cubed)|(?P<square>square|sq(?![a-z])\.?|平方)"
    r"|(?P<cubic>cubic|cu(?![a-z])\.?|立方)"
    rf"|(?P<word>{'|'.join(_CHINESE)}|度|元|摄氏度|华氏度|°\s?[CFT]\b|degrees?\s+(?:celsius|fahrenheit|centigrade|[CF]\b)|[°%Å{re.escape(MONEY)}¢]"
    r"|\\Omega|[kMGm]\\Omega|\\mu\s*[A-Za-z]+|[A-Za-zµμΩ]+\.?)"
    r"(?:\s*\^\s*\{?\s*(?P<power>-?[1-4])\s*\}?|(?P<digit>[23])(?!\d))?)",
    re.IGNORECASE,
)


@functools.lru_cache(4096)
def parse_unit(text: str) -> Measure | None:
    """Return the unit of "cm", "m/s^2", "kg m^2", "sq. ft", "miles per hour", "cubic meters"."""
    text = text.strip()
    if text[:1] == "(" and text[-1:] == ")":
        text = text[1:-1].strip()
    total, sign, pending, last = Measure(()), 1, 0, None
    at = words = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or words > 6:
            return None
        at, kind = token.end(), token.lastgroup
        if kind == "over":
            sign = -1
        elif kind in ("square", "cubic"):
            pending = 2 if kind == "square" else 3
        elif kind != "times":
            power = {"squared": 1, "cubed": 2}.get(kind or "", 0)
            if not power:
                last = _word(_spelled(token.group("word")))
                power = int(token.group("power") or token.group("digit") or pending or 1)
                pending, words = 0, words + 1
            if last is None:
                return None
            total = _times(total, last, power * sign)
    return total if words and not pending else None


def _times(one: Measure, other: Measure, power: int = 1) -> Measure:
    """Return the product of a unit and a power of another one."""
    powers = Counter(dict(one.powers))
    powers.update({name: exponent * power for name, exponent in other.powers})
    pairs = ((name, exponent) for name, exponent in powers.items() if exponent)
    return Measure(tuple(sorted(pairs)), one.factor * other.factor**power)


def _spelled(word: str) -> str:
    word = re.sub(r"°\s", "°", word.rstrip("."))
    word = re.sub(r"degrees?\s+(?=[cf])", "°", word, flags=re.IGNORECASE)
    word = {"°celsius": "°C", "°centigrade": "°C", "°fahrenheit": "°F"}.get(word.lower(), word)
    word = re.sub(r"\\mu\s*", "µ", word).replace("\\Omega", "Ω")
    return _CHINESE.get(word, word)


_MONEY_FIRST = re.compile(rf"([+-]?)\s*\\?([{re.escape(MONEY)}]|US\$|USD|EUR|Rs\.?)\s*(?=[\d.])")
_TEXT_GROUP = re.compile(r"\\text\s*\{([^{}]*)\}")
# "5 years old", "3 m long"
_EXTENT = re.compile(
    r"(?<=[A-Za-z])\s+(?:old|long|tall|wide|high|deep|thick|away|apart|ago|"
    r"in total|in all|altogether)$"
)
_TAIL = re.compile(
    rf"[A-Za-z°%ÅµμΩ(\\每平立{re.escape(MONEY)}¢{''.join({key[0] for key in _CHINESE})}度元摄华]"
)
_MAX_UNIT = 60  # characters


def split_unit(text: str, is_number: Callable[[str], bool]) -> tuple[str, Measure | None]:
    """Return ("5", metre) for "5 m" or "5\\text{ m}", and (text, None) if no unit ends the text.

    ``is_number`` tells a number, after which a bare letter is a unit: "3x + 2m" has none.
    """
    if money := _MONEY_FIRST.match(text):
        body, unit = split_unit(money.group(1) + text[money.end() :], is_number)
        currency = _word(money.group(2).replace("US$", "$").rstrip("."))
        return body, currency if not currency or unit in (None, currency) else _times(
            currency, unit
        )
    if (group := _TEXT_GROUP.search(text)) and text[: group.start()].strip(" /*"):
        unit = parse_unit(_TEXT_GROUP.sub(r" \1 ", text[group.start() :]))
        if unit is not None:
            return text[: group.start()].strip(), unit
    text = _EXTENT.sub("", text)
    first = max(1, len(text) - _MAX_UNIT)
    for at in range(first, len(text)):
        if not _TAIL.match(text[at]) or (text[at].isalpha() and _is_letter(text[at - 1])):
            continue
        unit = parse_unit(text[at:])
        if unit is None:
            continue
        body = _body_before(text, at, is_number)
        if body:
            return body, unit
    return text, None


def _body_before(text: str, at: int, is_number: Callable[[str], bool]) -> str:
    """Return the value whose unit begins at ``at``; "" if no value can have this unit."""
    body, bare = text[:at].rstrip(), text[at:].strip("() ")
    if body.endswith("-") and is_number(body[:-1]):  # 2-cm
        body = body[:-1]
    if bare == "s" and re.search(r"\d{4}$", text[:at]):  # the 1990s
        return ""
    if is_number(body):
        return body
    is_letter = len(bare) == 1 and bare.isascii() and bare.isalpha()
    return body if _may_carry_unit(body) and not is_letter else ""


def _is_letter(char: str) -> bool:
    return char.isascii() and (char.isalpha() or char == "\\")


def _may_carry_unit(body: str) -> bool:
    """Return whether a value ends here: a digit, a bracket, π, or a word of a number."""
    if re.search(r"(?:[\d)}\]|]|\d\.|\\pi|π)$", body):
        return True
    last = re.search(r"([A-Za-z]+)$", body)
    if last is None:
        return False
    return last.group(1).lower() in _ENDS or bool(re.search(r"\d\s*[a-z]$", body))


_ENDS = set(
    "pi hundred thousand million billion trillion half quarter third thirds quarters halves zero "
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "dozen".split()
)
