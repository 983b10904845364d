"""The page of the report: template, style and script, joined into one HTML string.

Everything shown comes from outside (model text above all), so three things hold for every value:
autoescaping is on, characters that a reader cannot see are spelled out (``visible``), and the page
carries a content security policy that admits only this script, by its hash, and data: images.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ovlt.report import charts
from ovlt.report.text import duration, number_text, percent, signed, visible

_HERE = Path(__file__).parent


def environment() -> Environment:
    """Return the templates of this folder, which escape every value."""
    templates = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "pct": percent, "signed": signed, "num": number_text, "duration": duration
    }  # fmt: skip
    return templates


def render(view: Mapping[str, object]) -> str:
    """Return the whole page; ``view`` is a ``PageView`` of ``ovlt.report.view``."""
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("report.html")
        .render(
            **view,
            style=Markup(style),  # noqa: S704 - our own files, nothing from outside
            script=Markup(script),  # noqa: S704
            style_hash=csp_hash(style),
            script_hash=csp_hash(script),
            box=charts,
        )
    )


def _finalize(value: object) -> object:
    """Spell out what cannot be seen in every text that the template prints."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def csp_hash(source: str) -> str:
    """Return a hash as a content security policy names it."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
