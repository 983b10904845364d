"""[engine], [reward]: who samples and who grades, for every stage that does so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ovlt.config.fields import NonNegative, Place, Positive, Rate, Share, Table, field


class EngineConfig(Table):
    """The engine that samples, in every stage that asks a model."""

    backend: Literal["vllm", "transformers"] = field("vllm", "Sampler; transformers is slow.")
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "Dtype of the engine; auto: the model's compute dtype."
    )
    max_sequences: Positive = field(256, "Sequences the engine runs at once.")
    gpu_memory: Share = field(0.6, "Share of GPU memory for the engine beside a trainer.")
    kv_cache_gib: Annotated[float, Field(gt=0)] = field(1.0, "KV cache on a CPU, GiB.")
    max_mismatch: Annotated[float, Field(ge=0)] = field(
        0.0,
        "Stop when the image probe's largest |log-prob difference| engine - trainer exceeds this; "
        "0: 1e-3 in float32, 0.5 in bfloat16.",
    )


class SoloEngineConfig(Table):
    """How the engine differs when no trainer shares its GPUs."""

    tensor_parallel: Positive = field(1, "GPUs per engine; above 1 there is one process.")
    gpu_memory: Share = field(0.9, "Share of GPU memory for the engine, which has it to itself.")
    max_sequences: NonNegative = field(
        0, "Sequences the engine runs at once; 0: engine.max_sequences."
    )


class RewardConfig(Table):
    """The verifiable reward, and who judges answers when no reward is needed."""

    function: Place = field(
        "answer",
        "'answer', 'math_verify', 'mathruler', 'judges', 'released', 'exact', or file.py:function.",
    )
    verdict: Place = field(
        "",
        "Reward whose part `accuracy` judges answers in traces, validation and held-out sets; "
        "empty: the same as function.",
    )
    workers: Positive = field(2, "Killable grading processes per rank.")
    timeout: Rate = field(5.0, "Seconds one answer may take before its worker is killed.")
    max_error_frac: Share = field(
        0.25,
        "Stop when a larger share of a step's gradings, or of an evaluation's, fails: the reward "
        "raises, dies or returns no number.",
    )
    batch_size: Positive = field(
        32, "Answers per call of a batch reward; calls at once of an async one, per worker."
    )
    max_chars: Positive = field(100_000, "Longer responses score 0 unread.")
    overlong_tokens: NonNegative = field(
        0, "DAPO's soft overlong penalty: tokens before the limit at which it sets in; 0: off."
    )
