"""The page that ``ovlt.report`` writes: template, style and script, joined into one HTML string.

Everything shown comes from outside (model text above all), so three things hold for every value:
autoescaping is on, characters that a reader cannot see are spelled out (``visible``), and the page
carries a content security policy that admits only this script, by its hash, and data: images.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from ovlt.report.text import _number, _percent, _span, signed, visible

_HERE = Path(__file__).parent


def render(view: dict[str, Any]) -> str:
    """The whole page. ``view`` is what ``ovlt.report.build_view`` returns."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from ovlt.report import charts

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
