"""The phases of a distillation, and what decides the records of each. Loads nothing heavy."""

from __future__ import annotations

from typing import Literal

from ovlt.config import DataConfig, DistillConfig, EngineConfig, ModelConfig, RewardConfig
from ovlt.config.changes import flat
from ovlt.model.tokenizer import MODEL_KEYWORDS, TemplateKeywords

Phase = Literal["captions", "details", "recaptions", "answers"]
Settings = dict[str, object]  # JSON values by the name under which a mistake is reported

# The keys of [distill] that decide the records of a phase, besides those of the phases before it.
DECIDED_BY: dict[Phase, tuple[str, ...]] = {
    "captions": (
        "data", "questions", "seed", "captioner_chat_template_kwargs", "caption_request",
        "caption_temperature", "max_caption_tokens", "max_prompt_tokens",
    ),
    "details": ("teacher", "teacher_chat_template_kwargs", "details_request"),
    "recaptions": ("recaption_request",),
    "answers": (
        "data", "questions", "seed", "captioner_chat_template_kwargs", "teacher",
        "teacher_chat_template_kwargs", "teacher_request", "k", "temperature", "top_p", "top_k",
        "max_prompt_tokens", "max_response_tokens",
    ),
}  # fmt: skip


def phases(config: DistillConfig) -> list[Phase]:
    """Return the phases that a recipe runs, in order."""
    if not config.teacher:
        return ["answers"]
    return [*DECIDED_BY] if config.refine else ["captions", "answers"]


def phase_and_before(config: DistillConfig) -> tuple[Phase, Phase | None]:
    """Return ``distill.phase`` and the phase whose records it reads; None for the first.

    Raises ValueError if the recipe does not have that phase.
    """
    order = phases(config)
    if config.phase == "all" or config.phase not in order:
        raise ValueError(
            f"distill.phase='{config.phase}' cannot be run by itself; this recipe has the phases "
            f"{', '.join(order)}: name one of them, or run all with `ovlt distill`"
        )
    at = order.index(config.phase)
    return config.phase, order[at - 1] if at else None


def own_settings(config: DistillConfig, phase: Phase) -> Settings:
    """Return the keys of [distill] that decide the records of a phase; of tables, their keys."""
    order = phases(config)
    earlier = order[: order.index(phase) + 1]
    names = [name for one in earlier for name in DECIDED_BY[one]]
    if not config.teacher:
        names.remove("teacher_chat_template_kwargs")  # nobody reads them
    return flat({name: getattr(config, name) for name in names})


def captioner_keywords(config: DistillConfig, model: ModelConfig) -> tuple[TemplateKeywords, str]:
    """Return the keywords for the captioner's chat template, and the recipe key that gives them."""
    if config.captioner_chat_template_kwargs is None:
        return model.chat_template_kwargs, MODEL_KEYWORDS
    return config.captioner_chat_template_kwargs, "distill.captioner_chat_template_kwargs"


def teacher_keywords(config: DistillConfig) -> tuple[TemplateKeywords, str]:
    """Return the keywords for the teacher's chat template, and the recipe key that gives them."""
    return config.teacher_chat_template_kwargs, "distill.teacher_chat_template_kwargs"


def generation_settings(
    config: DistillConfig, model: ModelConfig, engine: EngineConfig, digests: Settings
) -> Settings:
    """Return what decides the records of every phase outside [distill].

    ``digests`` are those of the models, and of the list of questions: records know theirs by its
    place in it.
    """
    keywords, key = captioner_keywords(config, model)
    inherited = keywords if key == MODEL_KEYWORDS else {}  # ``own_settings`` has the others
    return {
        **digests,
        "captioner": config.captioner or model.path,
        "model.min_pixels": model.min_pixels,
        "model.max_pixels": model.max_pixels,
        **flat({MODEL_KEYWORDS: inherited}),
        "engine.dtype": model.compute_dtype if engine.dtype == "auto" else engine.dtype,
        "engine.backend": engine.backend,
    }


def grading_settings(data: DataConfig, reward: RewardConfig) -> Settings:
    """Return what else decides the records of the answers: their suffix and their grader."""
    return {
        "data.suffix": data.suffix,
        "reward.verdict": reward.verdict or reward.function,
        "reward.timeout": reward.timeout,
        "reward.max_chars": reward.max_chars,
    }
