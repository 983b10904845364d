"""Seconds of one step, by phase: work divided by a rate times an assumed efficiency."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ovlt.model.sizes import recomputed_share
from ovlt.plan.engine import engine_seconds
from ovlt.plan.layout import Layout, layout
from ovlt.plan.memory import feature_bytes, training
from ovlt.plan.run import Run, StageKind, sampling_work
from ovlt.train.footprint import Training, recomputed


def seconds_per_step(run: Run, kind: StageKind) -> dict[str, float]:
    """Expected seconds of each phase of one step (SFT: one update; GRPO: one rollout batch)."""
    batch, assumed, gpu = layout(run, kind), run.assumed, run.node.gpu
    chosen = training(run, kind)
    update = _update_seconds(run, batch, chosen)
    if kind == "sft":
        return {"update": update}
    cfg, ranks, n = run.recipe.grpo, run.node.count, run.recipe.grpo.rollout.n
    updates = cfg.updates_per_rollout
    rate = ranks * gpu.flops * assumed.forward_efficiency
    decoder, tower = (batch.decoder + batch.head) / rate, batch.tower / rate  # of one update
    seen = _towers(run)
    rounds = assumed.rounds if cfg.dynamic_sampling else 1.0
    sampling = generation_seconds(run, cfg.prompts_per_step, n)
    phases = {
        "sampling": rounds * sampling,
        "reward": rounds * _grading_seconds(run, sampling),
    }
    if updates > 1:
        # The first update knows its own.
        phases["old log-probs"] = (updates - 1) * decoder + seen.old * tower
    if cfg.loss.kl_coef > 0:
        phases["reference log-probs"] = updates * (decoder + tower)
    without = _update_seconds(run, replace(batch, tower=0.0), chosen)
    phases["update"] = seen.update * update + (updates - seen.update) * without
    phases["weight sync"] = sync_seconds(run)
    return phases


def _grading_seconds(run: Run, sampling: float) -> float:
    """Expected seconds of grading after ``sampling`` seconds, while which most is graded.

    The last prompt's answers are there at the end; and graders may be slower than the engine.
    """
    cfg, each = run.recipe.grpo, run.assumed.grade_seconds / run.recipe.reward.workers
    answers = cfg.prompts_per_step * cfg.rollout.n / run.node.count
    return max(cfg.rollout.n * each, answers * each - sampling)


@dataclass(frozen=True)
class _Towers:
    """How many updates' images go through the tower, in two phases of a step."""

    old: int  # for old log-probs
    update: int


def _towers(run: Run) -> _Towers:
    """A frozen tower runs once over an image (ovlt.grpo.add_logprobs), unless features are many."""
    cfg = run.recipe.grpo
    updates = cfg.updates_per_rollout
    if not feature_bytes(run, "grpo"):
        return _Towers(updates - 1, updates)
    # Whether another model's tower is the same cannot be seen here.
    of_reference = cfg.loss.kl_coef > 0 and cfg.reference in ("", cfg.start)
    return _Towers(0, 0) if of_reference else _Towers(updates - 1, 1)


def _update_seconds(run: Run, batch: Layout, chosen: Training) -> float:
    """Expected seconds of one update, from the FLOPs of its forward."""
    model, assumed, gpu, ranks = run.recipe.model, run.assumed, run.node.gpu, run.node.count
    # A backward takes twice the FLOPs of its forward; a frozen tower has none.
    work = 3 * (batch.decoder + batch.head) + (1 if model.freeze_vision else 3) * batch.tower
    # What is recomputed runs forward once more; the head never is.
    of_text, of_tower = (recomputed_share(run.config, w) for w in recomputed(chosen.checkpointing))
    work += of_text * batch.decoder + (0 if model.freeze_vision else of_tower * batch.tower)
    compute = work / ranks / (gpu.flops * assumed.update_efficiency)
    # All weights are gathered in the forward and, if resharded, in the backward again; float32
    # gradients are reduced once, or with each micro-batch.
    gathers = 2 if model.reshard else 1
    reductions = batch.micro_batches if chosen.reduce_each else 1
    wire = batch.micro_batches * gathers * run.itemsize * run.parameters.total
    wire += reductions * 4 * run.trainable
    wire = wire * (ranks - 1) / ranks / (gpu.link * assumed.link_efficiency)
    # Adam reads four float32 numbers (weight, two moments, gradient) and writes three back.
    adam = 28 * run.trainable / ranks / gpu.bandwidth
    return max(compute, wire) + adam  # collectives overlap with the products


def generation_seconds(run: Run, prompts: int, n: int, longest: int = 0) -> float:
    """Expected seconds of ``n`` responses to each prompt, with an engine on each GPU."""
    return engine_seconds(sampling_work(run, prompts, n, longest), run.node.gpu, run.assumed)


def sync_seconds(run: Run) -> float:
    """Expected seconds of a weight sync before a rollout.

    Shards are cast to the engine's dtype, gathered in buckets, taken out of these and copied into
    the engine. At sleep level 1 the engine's weights have moved to the host and back before. The
    engine answers the image probe among the prompts of the rollout, with a few tokens more in some
    of its steps; the trainer's forward over the answer gathers and reads all its weights once.
    """
    p, assumed, gpu, ranks = run.parameters, run.assumed, run.node.gpu, run.node.count
    size = run.engine_itemsize * p.total  # bytes of the engine's weights
    wire = (ranks - 1) / ranks / (gpu.link * assumed.link_efficiency)  # seconds per byte gathered
    copies = ((4 * p.total + size) / ranks + 4 * size) / gpu.bandwidth
    host = 2 * size / (gpu.host * assumed.link_efficiency)
    moved = host if run.recipe.engine.sleep_level == 1 else 0.0
    probe = run.itemsize * p.total * (wire + 1 / gpu.bandwidth)
    return size * wire + copies + moved + probe + assumed.proof_seconds
