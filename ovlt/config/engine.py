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
    runner: Literal["auto", "v1", "v2"] = field(
        "auto",
        "vLLM's model runner on CUDA; auto: vLLM's choice, for Qwen2.5-VL V2. A CPU has V1 only.",
    )
    attention_backend: str = field(
        "", "vLLM's attention on CUDA, e.g. FLASH_ATTN or TRITON_ATTN; empty: vLLM's choice."
    )
    eager: bool = field(
        False, "vLLM without torch.compile and CUDA graphs; on a CPU it always runs so."
    )
    gpu_memory: Share = field(0.6, "Share of GPU memory for the engine beside a trainer.")
    sleep_level: Literal[1, 2] = field(
        2,
        "What sleep does on CUDA. 2: drop the weights, since a sync follows every wake; 1: keep a "
        "copy in pinned host memory, up to twice the size of the engine's weights per rank.",
    )
    kv_cache_gib: Annotated[float, Field(gt=0)] = field(1.0, "KV cache on a CPU, GiB.")
    max_mismatch: Annotated[float, Field(ge=0)] = field(
        0.0,
        "Stop when |log-prob difference| engine - trainer on a token of the image probe exceeds "
        "this, twice; 0: 1.5 in bfloat16, 1e-3 in float32 (2e-2 on CUDA).",
    )
    max_mean_mismatch: Annotated[float, Field(ge=0)] = field(
        0.0,
        "The same for the mean over the probe's tokens; 0: 0.12 in bfloat16, 1e-5 in float32 (5e-3 "
        "on CUDA).",
    )
    verify_every: NonNegative = field(
        50,
        "Weight syncs from one to the next whose tensors are read back out of the engine and must "
        "equal, bit for bit, what was sent; 0: none.",
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
