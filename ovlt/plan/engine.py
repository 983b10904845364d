"""Memory and seconds of a vLLM engine, in every stage that samples.

Each prompt is prefilled once; then full batches are decoded, then a tail of the longest responses.
A decoding step either reads (the decoder, the head, the cache of the running sequences) or
computes, whichever takes longer. With tensor parallelism each layer all-reduces its activations
over the GPUs twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from ovlt.model import sizes
from ovlt.plan.assumed import Assumptions
from ovlt.system.hardware import Gpu

GIB = 2**30


@dataclass(frozen=True)
class SamplingWork:
    """What one engine has to do at once: ``n`` responses to each of ``prompts``."""

    config: sizes.FileSizes
    itemsize: int  # bytes of the engine's dtype
    gpus: int  # that it spans
    share: float  # bytes of each GPU that it may take
    workspace: float  # bytes of each GPU for its own activations
    max_sequences: int  # that run at once
    prompts: int
    n: int
    prompt_tokens: int
    images: float  # per prompt
    grid: sizes.Grid  # of an image
    response_tokens: int  # mean
    longest: int  # most new tokens

    @property
    def weights(self) -> float:
        """Bytes of each GPU for weights."""
        return self.itemsize * sizes.parameters(self.config).total / self.gpus

    @property
    def kv_bytes(self) -> float:
        """Bytes of each GPU for one token in the cache.

        A key-value head is never divided: with more GPUs than heads, several hold the same one.
        """
        heads = self.config.text_config.num_key_value_heads
        return sizes.kv_bytes_per_token(self.config, self.itemsize) / min(self.gpus, heads)

    @property
    def state_bytes(self) -> float:
        """Bytes of each GPU for a running sequence, whatever its length."""
        return sizes.state_bytes_per_sequence(self.config, self.itemsize) / self.gpus

    @property
    def cache_bytes(self) -> float:
        """Bytes of each GPU for the sequences that run."""
        return max(0.0, self.share - self.weights - self.workspace)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache holds, beside the states of as many sequences as run at once."""
        states = self.state_bytes * min(self.max_sequences, max(1, self.prompts * self.n))
        return max(0, int((self.cache_bytes - states) / self.kv_bytes))

    def running(self, context: float) -> int:
        """Return how many sequences of so many tokens run at once."""
        most = min(self.max_sequences, self.prompts * self.n)
        each = context * self.kv_bytes + self.state_bytes
        return max(1, min(most, int(self.cache_bytes / each)))

    def least_share(self, longest_prompt: int) -> float:
        """Bytes of each GPU that the engine needs to hold one sequence of the greatest length."""
        sequence = (longest_prompt + self.longest) * self.kv_bytes + self.state_bytes
        return self.weights + self.workspace + sequence


def engine_seconds(work: SamplingWork, gpu: Gpu, assumed: Assumptions) -> float:
    """Expected seconds until the engine has sampled everything."""
    config, text, gpus = work.config, work.config.text_config, work.gpus
    # All-reduces of one pass, and what a token of it takes on the wire (a ring of the GPUs).
    reduces = 2 * text.num_hidden_layers if gpus > 1 else 0
    wire = reduces * text.hidden_size * work.itemsize * 2 * (gpus - 1) / gpus
    wire /= gpu.link * assumed.link_efficiency  # seconds per token
    prefill = _prefill_flops(work) / (gpus * gpu.flops * assumed.prefill_efficiency)
    prefill += work.prompt_tokens * wire  # seconds per prompt
    step = assumed.decode_overhead + reduces * assumed.reduce_seconds
    context = work.prompt_tokens + work.response_tokens / 2  # mean, half-way through a response
    batch = work.running(context)
    p = sizes.parameters(config)
    weights = work.itemsize * (p.decoder + (p.head or p.embedding)) / gpus  # bytes read per step
    rate = gpu.bandwidth * assumed.decode_efficiency
    # The state of a sequence is read and written.
    read = (weights + batch * (context * work.kv_bytes + 2 * work.state_bytes)) / rate
    flops = sizes.decoder_flops(config, 1) + sizes.head_flops(config, 1)
    compute = batch * flops / (gpus * gpu.flops * assumed.decode_efficiency)
    full = work.prompts * work.n * work.response_tokens / batch  # decoding steps of a full batch
    tail = max(0.0, work.longest - full)  # and of the longest response alone
    return (
        work.prompts * prefill
        + full * (max(read, compute) + batch * wire + step)
        + tail * (weights / rate + wire + step)
    )


def _prefill_flops(work: SamplingWork) -> float:
    """FLOPs of one prompt's prefill: the head sees its last token only."""
    flops = sizes.decoder_flops(work.config, work.prompt_tokens) + sizes.head_flops(work.config, 1)
    if work.images:
        flops += sizes.tower_flops(work.config, [work.grid]) * work.images
    return flops
