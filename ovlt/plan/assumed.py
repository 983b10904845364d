"""What a plan assumes of the hardware and of the libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumptions:
    """What a recipe does not say. None of it is measured; ``--assume.KEY=VALUE`` replaces any."""

    question_tokens: int = 100  # text of a question with the chat template's tokens
    images_per_question: float = 1.0  # each as large as model.max_pixels
    response_tokens: int = 400  # mean; the papers' traces have 150-400 words
    sft_response_tokens: int = 400  # mean of the teacher's traces
    caption_tokens: int = 250  # mean of a description
    teacher_response_tokens: int = 800  # mean; R1-Distill-14B thinks for 323 words (Figure 10)
    questions: int = 0  # of distill.data where neither file nor distill.questions says; 0: unknown
    kept_share: float = (
        0.42  # of the questions, with an SFT row: 25,000 of 59,200 and 3,000 of 7,000
    )
    held_out_questions: int = 1000  # measured at the end of a stage, where the file is not here
    rounds: float = 1.0  # of sampling per step, where grpo.dynamic_sampling draws again
    sft_rows: int = 0  # rows of sft.data where the file is not here; 0: those of the traces
    update_efficiency: float = (
        0.40  # of the product rate; EasyR1 reaches 8-23 % of peak on 8 x H100
    )
    forward_efficiency: float = 0.45  # the same for passes without backward
    prefill_efficiency: float = 0.40
    decode_efficiency: float = 0.60  # of memory bandwidth or product rate, while decoding
    decode_overhead: float = 0.003  # seconds of host work per decoding step
    reduce_seconds: float = 2e-5  # latency of adding up over GPUs, twice a layer and decoding step
    start_seconds: float = 180.0  # of a stage or phase: imports, weights, the engine's compilation
    link_efficiency: float = 0.70  # of the links' data sheet, for collectives and host copies
    grade_seconds: float = 0.005  # per answer and worker
    probe_seconds: float = 1.0  # caches and image probe of a weight sync
    disk_rate: float = 2e9  # bytes/s of the node into a checkpoint
    engine_workspace_gib: float = 4.0  # the engine's own activations and CUDA graphs
    reserve_gib: float = 4.0  # CUDA contexts, NCCL, the sleeping engine's rest, fragmentation
