"""Bytes that a rank holds while it trains, item by item, as the code allocates them.

An upper bound, counted for full micro-batches; nothing is loaded. ``ovlt plan`` shows it, and
training chooses by it what ``model.activation_checkpointing = "auto"`` and
``model.reduce_gradients = "auto"`` mean on the GPU at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ovlt.model import sizes
from ovlt.model.sizes import Checkpointing

Recomputation = Literal["none", "tower", "mlp", "full"]  # model.activation_checkpointing, settled
BLOCK_BYTES = 2560 << 20  # ovlt_kernels.blocks.CHUNK_BYTES on a GPU, which only torch can import
# Of image features that a rank keeps on its device from the first pass of a rollout to the last.
FEATURE_BYTES = 1 << 30
ON_DEVICE = 3  # micro-batches: one at work, one that waits, one on its way (train.feed)
# What may be chosen, fastest first: a reduction for each micro-batch overlaps with the backward,
# recomputing the tower takes a hundredth of a step, the MLPs a sixth, and whole layers a quarter.
CHOICES: tuple[tuple[Recomputation, bool], ...] = (
    ("none", False),
    ("none", True),
    ("tower", False),
    ("tower", True),
    ("mlp", False),
    ("mlp", True),
    ("full", False),
    ("full", True),
)


@dataclass(frozen=True)
class Training:
    """How a stage trains, as far as it decides memory."""

    ranks: int
    itemsize: int  # bytes of the compute dtype
    budget: int  # tokens of a full micro-batch
    micro_batches: int  # of a rank and update
    patches: int  # of the images of a full micro-batch
    keys: float  # that attention gathers, per token
    checkpointing: Recomputation
    reduce_each: bool  # gradients are reduced over ranks after each micro-batch
    reshard: bool
    liger: bool
    freeze_vision: bool
    reference: bool  # a frozen model for the KL is held
    features: float = 0.0  # bytes of image features that are kept for later passes


def state_items(config: sizes.Sizes, training: Training) -> dict[str, float]:
    """Bytes that a rank holds at every moment of the stage."""
    p, ranks = sizes.parameters(config), training.ranks
    items: dict[str, float] = {
        "float32 master weights, shard": 4 * p.total / ranks,
        "Adam moments, shard": 8 * trainable(p, training) / ranks,
    }
    if training.reference:
        items["reference, float32 shard"] = 4 * p.total / ranks
    return items


def recomputed(checkpointing: Recomputation) -> tuple[Checkpointing, Checkpointing]:
    """Return what of each decoder layer, and of each block of the tower, is recomputed."""
    return ("none", "full") if checkpointing == "tower" else (checkpointing, checkpointing)


def most_images(config: sizes.Sizes, max_pixels: int, budget: int) -> int:
    """Return how many images a micro-batch may have: half its tokens are of the largest ones."""
    per_image = sizes.tokens_per_image(config, sizes.square_grid(config, max_pixels))
    return max(1, budget // (2 * per_image))


def trainable(p: sizes.Parameters, training: Training) -> int:
    """Number of parameters that are trained."""
    return p.total - (p.tower if training.freeze_vision else 0)


def update_items(config: sizes.Sizes, training: Training) -> dict[str, dict[str, float]]:
    """Bytes at two moments: inside the head, and in the backward of the last decoder layer."""
    p, b, budget = sizes.parameters(config), training.itemsize, training.budget
    text = sizes.decoder_activations(config, b, liger=training.liger, keys=training.keys)
    tower = sizes.tower_activations(config, b, liger=training.liger)
    trained, items = trainable(p, training), state_items(config, training)
    if training.micro_batches > 1 and not training.reduce_each:
        # Gradients are reduced with the last micro-batch only (train.step.forward_backward). Until
        # then each rank accumulates those of all parameters, in float32.
        items["gradients, float32, whole until the last micro-batch"] = 4 * trained
    else:
        items["gradients, float32 shard"] = 4 * trained / training.ranks
    block = max(p.layer, 0 if training.freeze_vision else p.tower_block)
    gathered = p.root + 3 * block  # the block at work, the next one, and its all-gather buffer
    if not training.reshard:
        gathered = p.total + block
    items["gathered weights"] = b * gathered
    of_text, of_tower = recomputed(training.checkpointing)
    items["activations, decoder"] = budget * text.kept(of_text)
    if not training.freeze_vision:
        items["activations, tower"] = training.patches * tower.kept(of_tower)
    held = min(ON_DEVICE, training.micro_batches)
    pixels = held * b * training.patches * sizes.patch_values(config)
    items["pixels, of the next micro-batches too"] = pixels
    if training.features:
        items["image features of a rollout"] = training.features
    rows = budget  # as if every token had a loss
    vocab, hidden = config.text_config.vocab_size, config.text_config.hidden_size
    items["hidden states and gradient of the head's rows"] = 2 * b * rows * hidden
    if training.keys > 1 and b < 4:  # gather_rows sums the gradients of a repeated row in float32
        items["float32 gradient of hidden states"] = 4 * rows * hidden
    # At most eight float32 numbers per row.
    items["log-probs: new, old, reference, engine; weights"] = 4 * 8 * rows
    head = {
        "head: block of logits": min(rows, logit_rows(vocab)) * vocab * b,
        "head: float32 gradient": 4 * vocab * hidden,
    }
    again = text.recomputed(of_text)
    backward = {
        "head: rounded gradient": b * vocab * hidden,
        "one block recomputed or in backward": float(budget * again),
        "gradients of a block, and their float32 copy": (b + 4) * block,
    }
    return {"update, in the head": items | head, "update, in a block": items | backward}


def fullest(config: sizes.Sizes, training: Training) -> float:
    """Bytes of the fullest moment of an update."""
    return max(sum(items.values()) for items in update_items(config, training).values())


def cheapest_that_fits(
    config: sizes.Sizes,
    training: Training,
    free: float,
    *,
    checkpointing: Recomputation | Literal["auto"],
    reduce: Literal["auto", "each", "last"],
) -> Training:
    """Return ``training`` with what fits into ``free`` bytes and costs least time.

    What is not "auto" stays as it is given. If nothing fits, the choice that takes least memory.
    """
    allowed = [
        replace(training, checkpointing=kind, reduce_each=each)
        for kind, each in CHOICES
        if checkpointing in ("auto", kind) and (reduce == "auto" or each == (reduce == "each"))
    ]
    fitting = (choice for choice in allowed if fullest(config, choice) <= free)
    return next(fitting, min(allowed, key=lambda choice: fullest(config, choice)))


def logit_rows(vocab: int) -> int:
    """Rows of one block of logits, as ``ovlt_kernels.blocks.rows_per_block`` has on a GPU."""
    rows = max(1, BLOCK_BYTES // (4 * vocab))
    return rows - rows % 128 if rows >= 128 else rows
