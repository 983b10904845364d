"""What a plan assumes about the hardware, the data and the libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumptions:
    """What a recipe does not say. Nothing here is measured; ``--assume.KEY=VALUE`` replaces it."""

    question_tokens: int = 100  # text of a question, with the tokens of the chat template
    images_per_question: float = 1.0  # each as large as model.max_pixels
    response_tokens: int = 400  # mean; the papers' traces have 150-400 words
    sft_response_tokens: int = 400  # mean of the teacher's traces
    caption_tokens: int = 250  # mean of a caption
    teacher_response_tokens: int = 800  # mean; R1-Distill-14B thinks for 323 words (Figure 10)
    questions: int = 0  # of distill.data if neither the file nor distill.questions tells; 0: ?
    # Share of the questions that become an SFT row: 25,000 of 59,200 and 3,000 of 7,000.
    kept_share: float = 0.42
    held_out_questions: int = 1000  # answered at the end of a stage, if the file is not here
    rounds: float = 1.0  # of sampling per step, if grpo.dynamic_sampling draws again
    sft_rows: int = 0  # rows of sft.data if the file is not here; 0: as many as there are traces
    # Share of the product rate (Gpu.flops); EasyR1 reaches 8-23 % of peak on 8 x H100.
    update_efficiency: float = 0.40
    forward_efficiency: float = 0.45  # the same, for passes without backward
    prefill_efficiency: float = 0.40  # the same, for the engine's prefill
    decode_efficiency: float = 0.60  # share of memory bandwidth or product rate while decoding
    decode_overhead: float = 0.003  # seconds of host work per decoding step
    reduce_seconds: float = 2e-5  # latency of an all-reduce, two per layer and decoding step
    start_seconds: float = 180.0  # per stage or phase: imports, weights, the engine's compilation
    link_efficiency: float = 0.70  # share of the data sheet, for collectives and host copies
    grade_seconds: float = 0.005  # per answer and worker
    # Per rollout, on the host, for the proof of a weight sync: clearing caches, packing the probe,
    # launching a forward over it (20 ms on a CPU, with the forward of a tiny model).
    proof_seconds: float = 0.1
    disk_rate: float = 2e9  # bytes/s that a node writes into a checkpoint
    engine_workspace_gib: float = 4.0  # the engine's own activations and CUDA graphs
    # CUDA contexts, NCCL, what a sleeping engine still holds, fragmentation.
    reserve_gib: float = 4.0
