"""The phases of a distillation, and what decides what each of them says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ovlt.config import Recipe

if TYPE_CHECKING:
    from ovlt.data.sources import Row


# The keys of [distill] that decide what a phase says, besides those of the phases before it, and
# besides what ``made_with`` names.
DECIDED_BY = {
    "captions": (
        "data", "questions", "seed", "caption_request", "caption_temperature",
        "max_caption_tokens", "max_prompt_tokens",
    ),
    "details": ("teacher", "details_request"),
    "recaptions": ("recaption_request",),
    "answers": (
        "data", "questions", "seed", "teacher", "teacher_request", "k", "temperature",
        "top_p", "top_k", "max_prompt_tokens", "max_response_tokens",
    ),
}  # fmt: skip


def phases(recipe: Recipe) -> list[str]:
    """What this recipe runs, in order."""
    if not recipe.distill.teacher:
        return ["answers"]
    return [*DECIDED_BY] if recipe.distill.refine else ["captions", "answers"]


def digest_of(rows: Sequence[Row]) -> str:
    """Of questions with answers and images, in their order."""
    from ovlt.data.mixture.overlap import image_digest

    total = blake2b(digest_size=16)
    for row in rows:
        shown = [row.id, row.source, row.question, row.answer]
        total.update(json.dumps(shown).encode("ascii") + b"\n")
        for ref in row.images:
            total.update(image_digest(ref))
    return total.hexdigest()


def made_with(recipe: Recipe, questions: str, phase: str) -> dict[str, Any]:
    """What decides a phase's records outside [distill], by name: the models, the ``questions``
    (their digest: records know them by their place), how they are shown, and the grader."""
    reward, engine = recipe.reward, recipe.engine
    dtype = recipe.model.compute_dtype if engine.dtype == "auto" else engine.dtype
    found: dict[str, Any] = {
        "list of good questions": questions,
        "captioner": recipe.distill.captioner or recipe.model.path,
        "model.min_pixels": recipe.model.min_pixels,
        "model.max_pixels": recipe.model.max_pixels,
        "engine.dtype": dtype,
        "engine.backend": engine.backend,
    }
    if phase == "answers":
        found |= {
            "data.suffix": recipe.data.suffix,
            "reward.verdict": reward.verdict or reward.function,
            "reward.timeout": reward.timeout,
            "reward.max_chars": reward.max_chars,
        }
    return found
