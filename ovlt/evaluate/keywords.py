"""Words that speak of reasoning, counted in answers."""

from __future__ import annotations

import re

# Words that speak of reasoning, as OpenVLThinker counts them (arXiv 2503.17352 v1, Figure 7): of
# seeing, of digesting the question, of planning, of looking back, of alternatives.
KEYWORDS = ("identify", "recall", "given", "provided", "first", "wait", "check", "maybe")


def keyword_counts(text: str) -> list[int]:
    """How often each of KEYWORDS stands in a text, whole words in any case."""
    lowered = text.lower()
    return [len(re.findall(rf"\b{word}\b", lowered)) for word in KEYWORDS]
