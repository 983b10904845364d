"""Memory of a rank that trains, item by item, as the code allocates it.

It is an upper bound, counted for full micro-batches. Nothing is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ovlt.model import sizes
from ovlt.plan.engine import GIB, SamplingWork
from ovlt.plan.layout import layout
from ovlt.plan.run import Run, StageKind, sampling_work
from ovlt.train import footprint
from ovlt.train.footprint import Training

BUCKET_BYTES = 256 << 20  # ovlt.model.gather's, which only torch can import


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, by item, at the moments that can be the fullest."""

    moments: dict[str, dict[str, float]]
    kv_tokens: int = 0  # that the engine's cache holds
    host: float = 0.0  # bytes of the node's own memory, for sleeping engines

    def total(self, moment: str) -> float:
        """Bytes of one GPU at this moment."""
        return sum(self.moments[moment].values())


def memory(run: Run, kind: StageKind) -> Memory:
    """Count what a rank holds.

    The trainer's items are those of ovlt/train/footprint.py, the engine's of ovlt/rollout/vllm.py.
    """
    chosen, recipe = training(run, kind), run.recipe
    reserve = {"reserve (assumed)": run.assumed.reserve_gib * GIB}
    moments = footprint.update_items(run.config, chosen)
    update = {moment: held | reserve for moment, held in moments.items()}
    samples = kind == "grpo" or recipe.sft.eval_every > 0
    if not samples and not (recipe.data.held_out or recipe.evaluate.data):
        return Memory(update)
    p, work = run.parameters, sampling_work(run, 1, 1)
    state = footprint.state_items(run.config, chosen) | reserve
    engine = engine_items(work)
    # A large tensor, or a bucket of small ones and the copy of one; and the shard that was cast.
    largest = run.engine_itemsize * p.embedding
    on_the_way = max(largest, 2 * BUCKET_BYTES) + max(largest, BUCKET_BYTES) / run.node.count
    sync = {"weights on their way to the engine": on_the_way}
    return Memory(
        update | {"sampling": state | engine, "weight sync": state | engine | sync},
        kv_tokens=work.kv_tokens,
        host=run.node.count * work.weights if recipe.engine.sleep_level == 1 else 0.0,
    )


def engine_items(work: SamplingWork) -> dict[str, float]:
    """Bytes of each GPU that an engine holds, by item."""
    return {
        "engine: weights": work.weights,
        "engine: workspace": work.workspace,
        "engine: KV cache": work.cache_bytes,
    }


def training(run: Run, kind: StageKind) -> Training:
    """How a stage trains; what is "auto" is what training would choose on these GPUs."""
    model, batch = run.recipe.model, layout(run, kind)
    free = (run.node.gpu.memory_gib - run.assumed.reserve_gib) * GIB
    expected = Training(
        ranks=run.node.count,
        itemsize=run.itemsize,
        budget=batch.budget,
        micro_batches=batch.micro_batches,
        patches=batch.images * run.patches,
        keys=batch.keys,
        checkpointing="none",
        reduce_each=False,
        reshard=model.reshard,
        liger=model.liger != "off",  # 'auto' uses it on a GPU, where requirements install it
        freeze_vision=model.freeze_vision,
        reference=kind == "grpo" and run.recipe.grpo.loss.kl_coef > 0,
        features=feature_bytes(run, kind),
    )
    # Training does not know how many images to expect: it chooses for many (train.settle).
    many = footprint.most_images(run.config, model.max_pixels, batch.budget) * run.patches
    chosen = footprint.cheapest_that_fits(
        run.config,
        replace(expected, patches=max(many, expected.patches)),
        free,
        checkpointing=model.activation_checkpointing,
        reduce=model.reduce_gradients,
    )
    return replace(chosen, patches=expected.patches)


def feature_bytes(run: Run, kind: StageKind) -> float:
    """Bytes of image features that a rank keeps for later passes of a step; 0 if it keeps none."""
    cfg = run.recipe.grpo
    later = cfg.loss.kl_coef > 0 or cfg.updates_per_rollout > 1
    if kind == "sft" or not run.recipe.model.freeze_vision or not later:
        return 0.0
    row = run.itemsize * sizes.feature_values(run.config)
    held = row * run.image_tokens * cfg.prompts_per_step / run.node.count
    return held if held <= footprint.FEATURE_BYTES else 0.0


def checkpoint_bytes(run: Run) -> float:
    """Bytes of a checkpoint: float32 weights, and two moments of what is trained."""
    return 4 * run.parameters.total + 8 * run.trainable
