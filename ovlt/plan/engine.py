"""Memory and seconds of an engine: what ``ovlt.plan`` counts wherever vLLM samples.

Prefill once per prompt, then decoding: full batches, then a tail of the longest answers. A decoding
step reads the decoder, the head and the cache of what runs, or computes, whichever takes longer;
under tensor parallelism each layer adds up its activations over the GPUs twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovlt.model import qwen2_5_vl_sizes as sizes

if TYPE_CHECKING:
    from ovlt.plan.assumed import Assumptions
    from ovlt.system.hardware import Gpu

GIB = 2**30


@dataclass(frozen=True)
class Sampling:
    """What one engine is asked at once: ``n`` answers to each of ``prompts``."""

    config: Any
    itemsize: int  # bytes of the engine's dtype
    gpus: int  # that it spans
    share: float  # bytes it may take of each GPU
    workspace: float  # bytes of each GPU for its own activations
    max_sequences: int  # that run at once
    prompts: int
    n: int
    prompt_tokens: int
    images: float  # of a prompt
    grid: sizes.Grid  # of an image
    response_tokens: int  # mean
    longest: int  # most new tokens

    @property
    def weights(self) -> float:
        """Bytes of each GPU."""
        return self.itemsize * sizes.parameters(self.config).total / self.gpus

    @property
    def kv_bytes(self) -> float:
        """Bytes of each GPU for a token in the cache; a key-value head is never divided."""
        heads = self.config.text_config.num_key_value_heads
        return sizes.kv_bytes_per_token(self.config, self.itemsize) / min(self.gpus, heads)

    @property
    def kv_tokens(self) -> int:
        """Tokens the cache holds."""
        return max(0, int((self.share - self.weights - self.workspace) / self.kv_bytes))

    def least_share(self, longest_prompt: int) -> float:
        """Bytes of each GPU below which not even one longest sequence would fit."""
        return self.weights + self.workspace + (longest_prompt + self.longest) * self.kv_bytes


def seconds(work: Sampling, gpu: Gpu, a: Assumptions) -> float:
    """Expected seconds until the engine has answered everything."""
    config, text = work.config, work.config.text_config
    prefill = sizes.forward_flops(config, work.prompt_tokens, ())
    prefill -= sizes.head_flops(config, work.prompt_tokens - 1)
    if work.images:
        prefill += sizes.forward_flops(config, 0, [work.grid]) * work.images
    added_up = 2 * text.num_hidden_layers if work.gpus > 1 else 0  # per pass
    wire = added_up * text.hidden_size * work.itemsize * 2 * (work.gpus - 1) / work.gpus
    wire /= gpu.link * a.link_efficiency  # seconds per token
    step = a.decode_overhead + added_up * a.reduce_seconds
    context = work.prompt_tokens + work.response_tokens / 2
    batch = max(1, min(work.max_sequences, work.prompts * work.n, int(work.kv_tokens / context)))
    p = sizes.parameters(config)
    weights = work.itemsize * (p.decoder + (p.head or p.embedding)) / work.gpus
    rate = gpu.bandwidth * a.decode_efficiency
    token = sizes.forward_flops(config, 1, ()) / (work.gpus * gpu.flops * a.decode_efficiency)
    full = work.prompts * work.n * work.response_tokens / batch
    tail = max(0.0, work.longest - full)
    prefill_seconds = prefill / (work.gpus * gpu.flops * a.prefill_efficiency)
    prefill_seconds += work.prompt_tokens * wire
    reading = (weights + batch * context * work.kv_bytes) / rate
    return (
        work.prompts * prefill_seconds
        + full * (max(reading, batch * token) + batch * wire + step)
        + tail * (weights / rate + wire + step)
    )
