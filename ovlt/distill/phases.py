"""The phases of a distillation, and what decides the records of each. Loads nothing heavy."""

from __future__ import annotations

from typing import Literal

from ovlt.config import DataConfig, DistillConfig, EngineConfig, ModelConfig, RewardConfig

Phase = Literal["captions", "details", "recaptions", "answers"]
Settings = dict[str, object]  # JSON values by the name under which a mistake is reported

# The keys of [distill] that decide the records of a phase, besides those of the phases before it.
DECIDED_BY: dict[Phase, tuple[str, ...]] = {
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
    """Return the keys of [distill] that decide the records of a phase."""
    order = phases(config)
    earlier = order[: order.index(phase) + 1]
    return {name: getattr(config, name) for one in earlier for name in DECIDED_BY[one]}


def generation_settings(
    model: ModelConfig, engine: EngineConfig, captioner: str, digests: Settings
) -> Settings:
    """Return what decides the records of every phase outside [distill].

    ``digests`` are those of the models, and of the list of questions: records know theirs by its
    place in it.
    """
    return {
        **digests,
        "captioner": captioner,
        "model.min_pixels": model.min_pixels,
        "model.max_pixels": model.max_pixels,
        **{f"model.chat_template_kwargs.{k}": v for k, v in model.chat_template_kwargs.items()},
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
