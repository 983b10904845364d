"""Memory of a rank that trains, item by item, as the code allocates it.

It is an upper bound, counted for full micro-batches. Nothing is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.plan.engine import GIB, SamplingWork
from ovlt.plan.layout import layout
from ovlt.plan.run import Run, StageKind, sampling_work

BLOCK_BYTES = 2560 << 20  # ovlt_kernels.blocks.CHUNK_BYTES on a GPU, which only torch can import


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, by item, at the moments that can be the fullest."""

    moments: dict[str, dict[str, float]]
    kv_tokens: int = 0  # that the engine's cache holds
    host: float = 0.0  # bytes of the node's own memory

    def total(self, moment: str) -> float:
        """Bytes of one GPU at this moment."""
        return sum(self.moments[moment].values())


def memory(run: Run, kind: StageKind) -> Memory:
    """Count what a rank holds.

    The items come from ovlt/model/parallel.py, ovlt/train/step.py, the linear loss of ovlt_kernels
    and ovlt/rollout/vllm.py.
    """
    update = _update_memory(run, kind)
    recipe = run.recipe
    samples = kind == "grpo" or recipe.sft.eval_every > 0
    if not samples and not (recipe.data.held_out or recipe.evaluate.data):
        return Memory(update)
    p, work = run.parameters, sampling_work(run, 1, 1)
    state = _state(run, kind)
    engine = engine_items(work)
    # The policy's root group is freed before the weights are streamed; the forward of the image
    # probe gathers it again.
    sync = {"largest float32 tensor, gathered to be sent": 4 * p.embedding}
    probe = {"gathered root group, left by the probe": run.itemsize * p.root}
    return Memory(
        update | {"sampling": state | engine | probe, "weight sync": state | engine | sync},
        kv_tokens=work.kv_tokens,
        host=run.node.count * work.weights,
    )


def engine_items(work: SamplingWork) -> dict[str, float]:
    """Bytes of each GPU that an engine holds, by item."""
    return {
        "engine: weights": work.weights,
        "engine: workspace": work.workspace,
        "engine: KV cache": max(0.0, work.share - work.weights - work.workspace),
    }


def _state(run: Run, kind: StageKind) -> dict[str, float]:
    """Bytes that a rank holds at every moment of the stage."""
    p, ranks = run.parameters, run.node.count
    items: dict[str, float] = {
        "float32 master weights, shard": 4 * p.total / ranks,
        "Adam moments, shard": 8 * run.trainable / ranks,
    }
    if kind == "grpo" and run.recipe.grpo.loss.kl_coef > 0:
        items["reference, float32 shard"] = 4 * p.total / ranks
        items["reference, gathered root group"] = run.itemsize * p.root
    items["reserve (assumed)"] = run.assumed.reserve_gib * GIB
    return items


def _update_memory(run: Run, kind: StageKind) -> dict[str, dict[str, float]]:
    """Bytes at two moments: inside the head, and in the backward of the last decoder layer."""
    p, b, batch = run.parameters, run.itemsize, layout(run, kind)
    model = run.recipe.model
    liger = model.liger != "off"  # 'auto' uses it on a GPU, where the requirements install it
    text = sizes.decoder_activations(run.config, b, liger=liger, keys=batch.keys)
    tower = sizes.tower_activations(run.config, b, liger=liger)
    patches = batch.images * run.patches
    checkpointing = model.activation_checkpointing
    items = _state(run, kind)
    if batch.micro_batches > 1:
        # Gradients are reduced with the last micro-batch only (train.step.forward_backward). Until
        # then each rank accumulates those of all parameters, in float32.
        items["gradients, float32, whole until the last micro-batch"] = 4 * run.trainable
    else:
        items["gradients, float32 shard"] = 4 * run.trainable / run.node.count
    block = max(p.layer, 0 if model.freeze_vision else p.tower_block)
    gathered = p.root + 3 * block  # the block at work, the next one, and its all-gather buffer
    if not model.reshard:
        gathered = p.total + block
    items["gathered weights"] = b * gathered
    items["activations, decoder"] = batch.budget * text.kept(checkpointing)
    if not model.freeze_vision:
        items["activations, tower"] = patches * tower.kept(checkpointing)
    vision = run.config.vision_config
    pixels = vision.patch_size**2 * vision.temporal_patch_size * vision.in_channels  # of a patch
    items["pixels"] = 4 * patches * pixels
    rows = batch.budget  # as if every token had a loss
    vocab, hidden = run.config.text_config.vocab_size, run.config.text_config.hidden_size
    items["hidden states and gradient of the head's rows"] = 2 * b * rows * hidden
    if batch.keys > 1 and b < 4:  # gather_rows sums the gradients of a repeated row in float32
        items["float32 gradient of hidden states"] = 4 * rows * hidden
    # At most eight float32 numbers per row.
    items["log-probs: new, old, reference, engine; weights"] = 4 * 8 * rows
    head = {
        "head: block of logits": min(rows, logit_rows(vocab)) * vocab * b,
        "head: float32 gradient": 4 * vocab * hidden,
    }
    backward = {
        "head: rounded gradient": b * vocab * hidden,
        "one block recomputed or in backward": batch.budget * text.block if checkpointing else 0.0,
        "gradients of a block, and their float32 copy": (b + 4) * block,
    }
    return {"update, in the head": items | head, "update, in a block": items | backward}


def logit_rows(vocab: int) -> int:
    """Rows of one block of logits, as ``ovlt_kernels.blocks.rows_per_block`` has on a GPU."""
    rows = max(1, BLOCK_BYTES // (4 * vocab))
    return rows - rows % 128 if rows >= 128 else rows


def checkpoint_bytes(run: Run) -> float:
    """Bytes of a checkpoint: float32 weights, and two moments of what is trained."""
    return 4 * run.parameters.total + 8 * run.trainable
