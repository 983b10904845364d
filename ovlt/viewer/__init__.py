"""The page that ``ovlt.report`` writes: template, style and script, joined into one HTML string.

Everything shown comes from outside (model text above all), so three things hold for every value:
autoescaping is on, characters that a reader cannot see are spelled out (``visible``), and the page
carries a content security policy that admits only this script, by its hash, and data: images.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories, see ``visible``


def visible(text: str) -> str:
    """``text`` with control, bidi, zero-width, surrogate and unassigned characters spelled out.

    U+202E becomes the eight characters ``<U+202E>`` in mathematical angle brackets. Line feeds and
    tabs stay; CR LF becomes LF. The result always encodes as UTF-8.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        f"\u27e8U+{ord(char):04X}\u27e9"
        if char not in "\n\t" and unicodedata.category(char) in _UNSEEN
        else char
        for char in text
    )


def render(view: dict[str, Any]) -> str:
    """The whole page. ``view`` is what ``ovlt.report.build_view`` returns."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from ovlt.viewer import charts

    def finalize(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pct": _percent, "signed": signed, "num": _number, "span": _span}
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        **view,
        style=Markup(style),  # noqa: S704 - our own files, nothing from outside
        script=Markup(script),  # noqa: S704
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        box=charts,
    )


def _csp_hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else f"{value * 100:.1f}"


def signed(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return "\u2013"
    text = f"{abs(value) * scale:.{digits}f}"
    if float(text) == 0:
        return text
    return ("\u2212" if value < 0 else "+") + text


def _number(value: float | None) -> str:
    from ovlt.viewer.charts import format_number

    return "\u2013" if value is None else format_number(value)


def _span(seconds: float | None) -> str:
    """Seconds as a person reads them: 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
