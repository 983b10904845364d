"""Memory and seconds of a run from its recipe and sizes: arithmetic only, nothing is loaded.

Memory follows what the code allocates, part by part, and is a bound for full micro-batches. Seconds
are work divided by a rate times an *assumed* efficiency; ``Assumptions`` lists all of those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ovlt.config import Recipe
from ovlt.estimate_sampling import GIB, Sampling, seconds
from ovlt.hardware import Node
from ovlt.model import qwen2_5_vl_sizes as sizes

BLOCK_BYTES = 2560 << 20  # ovlt_kernels.blocks.CHUNK_BYTES on a GPU
Stage = Literal["sft", "grpo"]


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


@dataclass(frozen=True)
class Run:
    """A recipe on a model, on a node, under assumptions."""

    recipe: Recipe
    config: Any
    node: Node
    assumed: Assumptions
    others: Mapping[str, Any] = field(default_factory=dict)  # configurations by path, as for config

    @property
    def itemsize(self) -> int:
        """Bytes of the compute dtype; 'auto' is bfloat16 on a GPU."""
        return 4 if self.recipe.model.compute_dtype == "float32" else 2

    @property
    def parts(self) -> sizes.Parameters:
        return sizes.parameters(self.config)

    @property
    def trainable(self) -> int:
        return self.parts.total - (self.parts.tower if self.recipe.model.freeze_vision else 0)

    @property
    def grid(self) -> sizes.Grid:
        """A square image of about model.max_pixels."""
        merge = int(self.config.vision_config.spatial_merge_size)
        side = int(math.sqrt(self.recipe.model.max_pixels)) // sizes.merged_patch(self.config)
        return (1, max(1, side) * merge, max(1, side) * merge)

    @property
    def patches(self) -> int:
        return self.grid[1] * self.grid[2]

    @property
    def image_tokens(self) -> int:
        """Of the images of a question."""
        image = sizes.tokens_per_image(self.config, self.grid)
        return round(self.assumed.images_per_question * image)

    @property
    def prompt_tokens(self) -> int:
        wanted = self.assumed.question_tokens + self.image_tokens
        return min(wanted, self.recipe.grpo.rollout.max_prompt_tokens)

    @property
    def response_tokens(self) -> int:
        return min(self.assumed.response_tokens, self.recipe.grpo.rollout.max_response_tokens)


# --- micro-batches -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Layout:
    """One optimizer step, for samples of the expected length."""

    samples: int  # of all ranks
    sample_tokens: int
    response_tokens: int
    budget: int
    per_micro_batch: int  # samples that fit
    micro_batches: int  # of each rank
    images: int  # of a full micro-batch, at most
    towers: int  # runs of the tower for one image: parts that its group is split into


def layout(run: Run, stage: Stage) -> Layout:
    """As ``pack.plan`` lays out samples of equal length. Raises ValueError for one too long."""
    if stage == "sft":
        cfg, n = run.recipe.sft, 1
        samples, budget = cfg.batch_samples, cfg.token_budget
        response = run.assumed.sft_response_tokens
    else:
        cfg, n = run.recipe.grpo, run.recipe.grpo.rollout.n
        samples, budget = cfg.prompts_per_step // cfg.updates_per_rollout * n, cfg.token_budget
        response = run.response_tokens
    length = run.prompt_tokens + response
    if length > budget:
        raise ValueError(
            f"an expected sample of {length} tokens exceeds {stage}.token_budget={budget}: raise "
            f"it to --{stage}.token_budget={-(-length // 1024) * 1024}"
        )
    fit = budget // length
    micro = math.ceil(samples / (fit * run.node.count))
    # Whole groups where they fit into so few micro-batches, else parts of at most four, which are
    # spread: then a micro-batch may hold one sample of each group.
    whole = fit // n * micro * run.node.count >= samples // n
    images = math.ceil((fit // n if whole else fit) * run.assumed.images_per_question)
    return Layout(
        samples=samples,
        sample_tokens=length,
        response_tokens=response,
        budget=budget,
        per_micro_batch=fit,
        micro_batches=micro,
        images=images,
        towers=1 if whole else math.ceil(n / 4),
    )


# --- memory ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, by item, in the moments that can be the fullest."""

    moments: dict[str, dict[str, float]]
    kv_tokens: int = 0  # the engine's cache
    host: float = 0.0  # of the node, bytes

    def total(self, moment: str) -> float:
        return sum(self.moments[moment].values())


def memory(run: Run, stage: Stage) -> Memory:
    """What a rank holds. See parallel.py, stage.py, linear_loss.py and rollout.py for each item."""
    update = _update_memory(run, stage)
    recipe = run.recipe
    samples = stage == "grpo" or recipe.sft.eval_every > 0
    if not samples and not (recipe.data.held_out or recipe.evaluate.data):
        return Memory(update)
    p, item, engine_of = run.parts, run.itemsize, sampling(run, 1, 1)
    state = {k: v for k, v in _state(run, stage).items() if "gradients" not in k}
    engine = engine_items(engine_of)
    # Before streaming, the policy's root group is let go; the probe's forward gathers it again.
    sync = {"largest float32 tensor, gathered to be sent": 4 * p.embedding}
    probed = {"gathered root group, left by the probe": item * p.root}
    return Memory(
        update | {"sampling": state | engine | probed, "weight sync": state | engine | sync},
        kv_tokens=engine_of.kv_tokens,
        host=run.node.count * engine_of.weights,
    )


def engine_items(work: Sampling) -> dict[str, float]:
    """Bytes of each GPU, by item."""
    return {
        "engine: weights": work.weights,
        "engine: workspace": work.workspace,
        "engine: KV cache": max(0.0, work.share - work.weights - work.workspace),
    }


def engine_itemsize(run: Run) -> int:
    """Bytes of the engine's dtype; 'auto' is the trainer's."""
    return {"float32": 4, "bfloat16": 2}.get(run.recipe.grpo.rollout.dtype, run.itemsize)


def _state(run: Run, stage: Stage) -> dict[str, float]:
    p, ranks = run.parts, run.node.count
    items: dict[str, float] = {
        "float32 master weights, shard": 4 * p.total / ranks,
        "Adam moments, shard": 8 * run.trainable / ranks,
    }
    if stage == "grpo" and run.recipe.grpo.loss.kl_coef > 0:
        items["reference, float32 shard"] = 4 * p.total / ranks
        items["reference, gathered root group"] = run.itemsize * p.root
    items["reserve (assumed)"] = run.assumed.reserve_gib * GIB
    return items


def _update_memory(run: Run, stage: Stage) -> dict[str, dict[str, float]]:
    """Two moments: inside the head, and in the backward of the last decoder layer."""
    p, b, plan = run.parts, run.itemsize, layout(run, stage)
    model = run.recipe.model
    liger = model.liger != "off"  # 'auto' takes it on a GPU, where the requirements install it
    text = sizes.decoder_activations(run.config, b, liger=liger)
    tower = sizes.tower_activations(run.config, b, liger=liger)
    patches = plan.images * run.patches
    checkpointing = model.activation_checkpointing
    state = _state(run, stage)
    if plan.micro_batches > 1:
        # Reduced with the last micro-batch only (stage.forward_backward): until then each rank adds
        # up the gradients of all parameters, in float32.
        state["gradients, float32, whole until the last micro-batch"] = 4 * run.trainable
    else:
        state["gradients, float32 shard"] = 4 * run.trainable / run.node.count
    block = max(p.layer, 0 if model.freeze_vision else p.tower_block)
    gathered = p.root + 3 * block  # the block at work, the next one, and its all-gather buffer
    if not model.reshard:
        gathered = p.total + block
    state["gathered weights"] = b * gathered
    state["activations, decoder"] = plan.budget * text.kept(checkpointing)
    if not model.freeze_vision:
        state["activations, tower"] = patches * tower.kept(checkpointing)
    config = run.config
    pixels = config.vision_config.patch_size**2 * config.vision_config.temporal_patch_size
    state["pixels"] = 4 * patches * pixels * config.vision_config.in_channels
    rows = plan.budget  # as if every token carried loss
    vocab, hidden = config.text_config.vocab_size, config.text_config.hidden_size
    state["hidden states and gradient of the head's rows"] = 2 * b * rows * hidden
    state["log-probs: new, old, reference, engine; weights"] = 4 * 8 * rows
    head = {
        "head: block of logits": min(rows, logit_rows(vocab)) * vocab * b,
        "head: float32 gradient": 4 * vocab * hidden,
    }
    backward = {
        "head: rounded gradient": b * vocab * hidden,
        "one block recomputed or in backward": plan.budget * text.block if checkpointing else 0.0,
        "gradients of a block, and their float32 copy": (b + 4) * block,
    }
    return {"update, in the head": state | head, "update, in a block": state | backward}


def logit_rows(vocab: int) -> int:
    """Rows of one block of logits, as ``ovlt_kernels.blocks.rows_per_block`` on a GPU."""
    rows = max(1, BLOCK_BYTES // (4 * vocab))
    return rows - rows % 128 if rows >= 128 else rows


# --- seconds -----------------------------------------------------------------------------------
def step_seconds(run: Run, stage: Stage) -> dict[str, float]:
    """Expected seconds of each phase of one step (SFT: one optimizer step; GRPO: one rollout)."""
    plan, a, gpu, ranks = layout(run, stage), run.assumed, run.node.gpu, run.node.count
    updates = 1 if stage == "sft" else run.recipe.grpo.updates_per_rollout
    n = 1 if stage == "sft" else run.recipe.grpo.rollout.n
    forward = _forward_flops(run, plan, n)
    decoder, tower = forward
    work = 3 * decoder + (1 if run.recipe.model.freeze_vision else 3) * tower
    if run.recipe.model.activation_checkpointing:  # the head is not made again
        head = sizes.head_flops(run.config, plan.response_tokens * plan.samples)
        work += decoder - head + (0 if run.recipe.model.freeze_vision else tower)
    compute = work / ranks / (gpu.flops * a.update_efficiency)
    p, share = run.parts, (ranks - 1) / ranks
    gathers = 2 if run.recipe.model.reshard else 1  # a pass's all-gathers; whole weights each
    wire = plan.micro_batches * gathers * run.itemsize * p.total + 4 * run.trainable
    wire = wire * share / (gpu.link * a.link_efficiency)
    adam = (
        28 * run.trainable / ranks / gpu.bandwidth
    )  # weight, two moments, gradient; read, written
    update = updates * (max(compute, wire) + adam)  # collectives run beside the products
    if stage == "sft":
        return {"update": update}
    cfg = run.recipe.grpo
    passes = updates * sum(forward) / ranks / (gpu.flops * a.forward_efficiency)
    answers = cfg.prompts_per_step * n / ranks
    rounds = a.rounds if cfg.dynamic_sampling else 1.0
    phases = {
        "sampling": rounds * generation_seconds(run, cfg.prompts_per_step, n),
        "reward": rounds * answers * a.grade_seconds / cfg.reward.workers,
    }
    if updates > 1:
        phases["old log-probs"] = passes
    if cfg.loss.kl_coef > 0:
        phases["reference log-probs"] = passes
    phases["update"] = update
    phases["weight sync"] = sync_seconds(run)
    return phases


def _forward_flops(run: Run, plan: Layout, n: int) -> tuple[float, float]:
    """(decoder with the head over the responses, tower) of one optimizer step, all ranks."""
    text = sizes.forward_flops(run.config, plan.sample_tokens, ())
    text -= sizes.head_flops(run.config, plan.sample_tokens - plan.response_tokens)
    tower = sizes.forward_flops(run.config, 0, [run.grid]) * run.assumed.images_per_question
    return plan.samples * text, plan.samples / n * plan.towers * tower


def sampling(run: Run, prompts: int, n: int, longest: int = 0) -> Sampling:
    """The work of one of the engines, one per GPU, that share ``prompts``."""
    cfg = run.recipe.grpo.rollout
    longest = longest or cfg.max_response_tokens
    return Sampling(
        config=run.config,
        itemsize=engine_itemsize(run),
        gpus=1,
        share=cfg.gpu_memory * run.node.gpu.memory_gib * GIB,
        workspace=run.assumed.engine_workspace_gib * GIB,
        max_sequences=cfg.max_sequences,
        prompts=math.ceil(prompts / run.node.count),
        n=n,
        prompt_tokens=run.prompt_tokens,
        images=run.assumed.images_per_question,
        grid=run.grid,
        response_tokens=min(run.assumed.response_tokens, longest),
        longest=longest,
    )


def generation_seconds(run: Run, prompts: int, n: int, longest: int = 0) -> float:
    """Expected seconds of ``n`` answers to each prompt, an engine on each GPU."""
    return seconds(sampling(run, prompts, n, longest), run.node.gpu, run.assumed)


def sync_seconds(run: Run) -> float:
    """Float32 weights gathered to every GPU, cast into the engine; its wake, sleep and probe."""
    p, a, gpu, ranks = run.parts, run.assumed, run.node.gpu, run.node.count
    gather = 4 * p.total * (ranks - 1) / ranks / (gpu.link * a.link_efficiency)
    cast = (4 + run.itemsize) * p.total / gpu.bandwidth
    host = 2 * run.itemsize * p.total / (gpu.host * a.link_efficiency)
    return gather + cast + host + a.probe_seconds


def checkpoint_bytes(run: Run) -> float:
    """Float32 weights and two moments of what is trained."""
    return 4 * run.parts.total + 8 * run.trainable
