"""[evaluate.benchmark]: which public benchmarks, asked and scored by whose rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ovlt.config.fields import NonNegative, Place, Positive, Table, field


class JudgeConfig(Table):
    """An OpenAI-compatible endpoint, for benchmarks whose rules ask a judge."""

    url: str = field("", "Its address, like http://localhost:8000/v1; empty: no judge.")
    model: str = field("", "Name to ask for; empty: the first that the endpoint lists.")
    key_variable: str = field(
        "OPENAI_API_KEY", "Environment variable that holds the key, if the endpoint wants one."
    )
    parallel: Positive = field(32, "Requests under way at once.")
    timeout: Annotated[float, Field(gt=0)] = field(120.0, "Seconds one request may take.")
    tries: Positive = field(4, "Attempts of one request before it counts as unjudged.")


class BenchmarkConfig(Table):
    """Public benchmarks in place of evaluate.data: `ovlt evaluate --benchmark mathvista`."""

    names: str = field(
        "", "Benchmarks, like 'mathvista,mathverse:vision_only'; empty: evaluate.data."
    )
    style: Literal["official", "openvlthinker", "vlmevalkit"] = field(
        "official", "Whose prompt, decoding, sizes of images and verdicts."
    )
    settings: str = field("", "Variants of a style, like 'direct' or 'cot,llm_eval'.")
    data: Place = field("", "Folder of the benchmarks' files, a file, or a Hub id; empty: the Hub.")
    out: Place = field(
        "", "Folder of results; empty: runs/benchmarks/ and the last two names of the model."
    )
    n: Positive = field(1, "Responses per question; above 1 a temperature is needed.")
    temperature: Annotated[float, Field(ge=-1)] = field(-1.0, "-1: the style's; 0: greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Nucleus, if a temperature is given.")
    top_k: NonNegative = field(0, "Most likely tokens, if a temperature is given; 0: all.")
    max_response_tokens: NonNegative = field(0, "Most new tokens; 0: the style's.")
    max_prompt_tokens: Positive = field(
        18432, "Longer prompts (images included) are not asked, and count as wrong."
    )
    min_pixels: NonNegative = field(0, "Smallest area of an image; 0: the style's.")
    max_pixels: NonNegative = field(0, "Largest area of an image; 0: the style's.")
    strip_thoughts: bool = field(True, "Rules read only what follows the last </think>.")
    check_counts: bool = field(True, "Refuse files whose counts are not the benchmark's.")
    limit: NonNegative = field(0, "Ask a seeded choice of this many questions; 0: all.")
    restyle: Place = field(
        "", "Score the responses of this result (or an official output file) again; asks no model."
    )
    expect: str = field("", "A model of docs/benchmarks.md whose published score to compare with.")
    compare: Place = field("", "A result folder of another model, for a paired comparison.")
    validation: str = field(
        "", "Benchmarks asked at every validation of a stage, by rules alone; empty: none."
    )
    validation_questions: NonNegative = field(
        200, "A seeded choice of this many questions of each at a validation; 0: all."
    )
    workers: Positive = field(4, "Threads that decode images, and processes that apply rules.")
    judge: JudgeConfig = JudgeConfig()
