"""[distill], [cycle]: traces, and SFT and GRPO in turns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ovlt.config.engine import SoloEngineConfig
from ovlt.config.fields import (
    NonNegative,
    Place,
    Positive,
    StageName,
    Table,
    TemplateKeywords,
    field,
)


class DistillConfig(Table):
    """Traces for SFT: captions for a teacher that cannot see, or a model's own answers."""

    stage: StageName = field("distill", "Name of the stage folder inside run.folder.")
    data: Place = field("", "Questions: problem, answer, images (parquet or JSONL).")
    questions: NonNegative = field(
        0, "Use only this many questions, from the start of the file; 0: all."
    )
    captioner: Place = field("", "Model folder that describes the images; empty: model.path.")
    captioner_chat_template_kwargs: TemplateKeywords | None = field(
        None,
        "Keywords for the captioner's chat template; unset: model.chat_template_kwargs; {}: none.",
    )
    teacher: Place = field(
        "", "Model folder that reasons over the captions, text only; empty: no captions, the "
        "captioner answers the questions itself (iterations after the first)."
    )  # fmt: skip
    teacher_chat_template_kwargs: TemplateKeywords = field(
        {}, "Keywords for the teacher's chat template, such as enable_thinking = true."
    )
    k: Positive = field(4, "Answers sampled per question.")
    temperature: Annotated[float, Field(gt=0)] = field(0.6, "Temperature of the answers.")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Nucleus of the answers.")
    top_k: NonNegative = field(0, "Sample from this many most likely tokens; 0: all.")
    caption_temperature: Annotated[float, Field(ge=0)] = field(
        0.0, "Temperature of the captions; 0: greedy."
    )
    max_caption_tokens: Positive = field(1024, "Most new tokens of a caption.")
    max_prompt_tokens: Positive = field(6144, "Longer prompts (caption included) are left out.")
    max_response_tokens: Positive = field(8192, "Most new tokens of an answer.")
    caption_request: str = field(
        "Describe this image so fully, in plain sentences, that someone who cannot see it could "
        "answer any question about it: every object, number, label, colour and position.",
        "What the captioner is asked about an image.",
    )
    teacher_request: str = field(
        "Here is a description of an image.\n\n{caption}\n\nAnswer the question about this image. "
        "Give the final answer in <answer></answer>.\n\n{question}",
        "What the teacher is asked; {caption} and {question} are filled in.",
    )
    keep: Literal["shortest", "second_longest"] = field(
        "shortest",
        "Which correct trace is kept: shortest, as the papers say; second_longest, as the released "
        "code does.",
    )
    filter: Literal["none", "max_words", "reflections"] = field(
        "none",
        "max_words: leave long traces out; reflections: cut a trace at its first 'Wait'; "
        "none: keep all.",
    )
    max_words: Positive = field(500, "With filter = max_words: longer reasoning is left out.")
    form: str = field(
        "<think>\n{think}\n</think>\n\n{summary}\n\n<answer>{answer}</answer>",
        "The text that is learned; {think}, {summary}, {answer} are filled in.",
    )
    refine: bool = field(False, "Describe each image again, with what the teacher missed.")
    details_request: str = field(
        "Here is a description of an image.\n\n{caption}\n\nSomeone must answer this question from "
        "it alone:\n\n{question}\n\nList what the description leaves out or leaves unclear.",
        "With refine: what the teacher is asked about a description.",
    )
    recaption_request: str = field(
        "Describe this image fully, in plain sentences. An earlier description left this open; "
        "make it clear:\n\n{details}",
        "With refine: what the captioner is then asked; {details} is filled in.",
    )
    answers_of: str = field(
        "",
        "Stage whose captions and answers are used again, under other rules; empty: its own.",
    )
    phase: Literal["all", "captions", "details", "recaptions", "answers"] = field(
        "all", "all: one phase after the other, each with processes of its own; or only this one."
    )
    ranks: NonNegative = field(
        0, "Processes per phase; 0: cycle.ranks in a cycle, else one per GPU, or two on a CPU."
    )
    shard: Positive = field(256, "Questions per file and rank; a kill loses at most this many.")
    seed: NonNegative = field(0, "Seed of the sampled answers.")
    engine: SoloEngineConfig = SoloEngineConfig()

    @model_validator(mode="after")
    def _places(self) -> DistillConfig:
        if self.engine.tensor_parallel > 1 and self.ranks > 1:
            raise ValueError(
                "distill.engine.tensor_parallel > 1 is for one process that spreads a large "
                "teacher over GPUs: set distill.ranks to 1 or 0"
            )
        for text, key, names in (
            (self.teacher_request, "teacher_request", ("caption", "question")),
            (self.details_request, "details_request", ("caption", "question")),
            (self.recaption_request, "recaption_request", ("details",)),
            (self.form, "form", ("think", "answer")),
        ):
            for name in names:
                if "{" + name + "}" not in text:
                    raise ValueError(f"distill.{key} lacks {{{name}}}: it would be lost; put it in")
        return self


class IterationConfig(Table):
    """One iteration: traces, SFT on them from the base model, GRPO from there."""

    distill: dict[str, Any] = field({}, "Keys of [distill] that differ in this iteration.")
    sft: dict[str, Any] = field(
        {}, "Keys of [sft] that differ; its `model`, `engine`, `reward` hold keys of those tables."
    )
    grpo: tuple[dict[str, Any], ...] = field(
        ({},),
        "Stages of GRPO, one after the other: keys of [grpo] that differ; `name` ends the name of "
        "the stage; `model`, `engine`, `reward` hold keys of those tables.",
    )


class CycleConfig(Table):
    """SFT and GRPO in turns, each iteration on traces of the one before."""

    iterations: tuple[IterationConfig, ...] = field((), "The iterations: [[cycle.iterations]].")
    restart: Literal["base", "continue"] = field(
        "base", "SFT starts from the base model each time, or from the iteration before."
    )
    validation: Place = field("", "Validation questions of every stage; empty: data.validation.")
    held_out: Place = field("", "Held-out questions of every stage; empty: data.held_out.")
    validation_questions: NonNegative = field(
        0, "Use this many validation questions in every stage; 0: data.validation_questions."
    )
    ranks: NonNegative = field(0, "Processes per stage; 0: one per GPU, or two on a CPU.")

    @model_validator(mode="after")
    def _names(self) -> CycleConfig:
        for number, iteration in enumerate(self.iterations, 1):
            names = [part.get("name", "") for part in iteration.grpo]
            if not names:
                raise ValueError(
                    f"iteration {number} has no part of GRPO: leave the key grpo out, or give one"
                )
            if len(set(names)) < len(names):
                raise ValueError(
                    f"the parts of GRPO of iteration {number} need names that differ, not {names}"
                )
        return self
