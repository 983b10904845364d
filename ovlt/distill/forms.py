"""Texts with places to fill in, {name}."""

from __future__ import annotations

import re
from collections.abc import Mapping


def fill(form: str, parts: Mapping[str, str]) -> str:
    """``form`` with each {name} of ``parts`` replaced, in one pass: what is filled in is not read
    again, so a caption that spells {question} stays as it is. Other braces are left alone."""
    names = "|".join(map(re.escape, parts))
    return re.sub(r"\{(" + names + r")\}", lambda found: parts[found[1]], form)
