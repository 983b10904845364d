"""Seconds of a step, by arithmetic."""

from __future__ import annotations

from ovlt.model import qwen2_5_vl_sizes as sizes
from ovlt.plan.engine import seconds
from ovlt.plan.memory import Layout, Run, Stage, layout, sampling


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
        "reward": rounds * answers * a.grade_seconds / run.recipe.reward.workers,
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
