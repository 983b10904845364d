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
from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.plan.assumed import Assumptions
from ovlt.plan.engine import GIB, Sampling
from ovlt.system.hardware import Node

BLOCK_BYTES = 2560 << 20  # ovlt_kernels.blocks.CHUNK_BYTES on a GPU
Stage = Literal["sft", "grpo"]


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
    return {"float32": 4, "bfloat16": 2}.get(run.recipe.engine.dtype, run.itemsize)


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


def sampling(run: Run, prompts: int, n: int, longest: int = 0) -> Sampling:
    """The work of one of the engines, one per GPU, that share ``prompts``."""
    cfg = run.recipe.grpo.rollout
    longest = longest or cfg.max_response_tokens
    return Sampling(
        config=run.config,
        itemsize=engine_itemsize(run),
        gpus=1,
        share=run.recipe.engine.gpu_memory * run.node.gpu.memory_gib * GIB,
        workspace=run.assumed.engine_workspace_gib * GIB,
        max_sequences=run.recipe.engine.max_sequences,
        prompts=math.ceil(prompts / run.node.count),
        n=n,
        prompt_tokens=run.prompt_tokens,
        images=run.assumed.images_per_question,
        grid=run.grid,
        response_tokens=min(run.assumed.response_tokens, longest),
        longest=longest,
    )


def checkpoint_bytes(run: Run) -> float:
    """Float32 weights and two moments of what is trained."""
    return 4 * run.parts.total + 8 * run.trainable
