"""``torchrun -m ovlt.grpo [RECIPE]``: group-relative policy optimisation with images.

Follow one image: ``to_prompt`` decodes it, ``engine.generate`` answers its question n times,
``score`` grades the answers, ``group_advantages`` compares them, ``plan`` and ``collate`` pack,
``model(batch, objective)`` runs tower, decoder and head, ``policy_loss`` is what is differentiated,
``optimizer.step`` moves the weights and ``sync`` streams them back into the engine.

Equations: DeepSeekMath (arXiv 2402.03300) section 4.1; the switches DAPO (2503.14476), Dr.GRPO
(2503.20783), GSPO (2507.18071).
"""

from __future__ import annotations

from typing import Any

from ovlt.config import Recipe
from ovlt.config.load import command_line


def main() -> None:
    recipe = command_line("grpo", "GRPO: sample groups, grade, update, sync.", "grpo")
    from ovlt.system import env

    env.apply("cpu" if recipe.run.device == "cpu" else env.machine())
    from ovlt.smoke.make import ensure_inputs
    from ovlt.system.runtime import running

    with running("grpo", recipe.run) as runtime:
        ensure_inputs(runtime, recipe, "grpo")
        train(runtime, recipe)


def train(runtime: Any, recipe: Recipe) -> None:
    """Run the stage; every rank executes the same lines."""
    from functools import partial

    from ovlt.data.loader import Loader
    from ovlt.data.rows import read_rows
    from ovlt.data.sampler import Sampler
    from ovlt.data.sources import to_prompt
    from ovlt.evaluate.validator import Validator, tolerance_of
    from ovlt.model.load import open_folder
    from ovlt.model.parallel import load_sharded
    from ovlt.model.weights import export_folder
    from ovlt.reward.pool import RewardPool
    from ovlt.rollout.groups import Rollouts, rollout_metrics
    from ovlt.rollout.open import engine_dtype, open_engine
    from ovlt.rollout.sync import WeightSync
    from ovlt.run.metrics import MetricsWriter, PhaseTimer
    from ovlt.run.stage import Stage
    from ovlt.system.runtime import compute_dtype
    from ovlt.train import checkpoint
    from ovlt.train.advantage import group_advantages
    from ovlt.train.best import Best
    from ovlt.train.loss import loss_weights, policy_objective
    from ovlt.train.optim import build_adamw, clip_gradients, learning_rate, set_lr
    from ovlt.train.pack import pack
    from ovlt.train.step import check_update, forward_backward, forward_only, means, mfu

    cfg, rollout = recipe.grpo, recipe.grpo.rollout
    stage = Stage(runtime, recipe, cfg.stage, cfg.title, "grpo")
    folder = open_folder(recipe.expand(cfg.start or recipe.model.path))
    hidden = int(folder.config.text_config.hidden_size)
    dtype = compute_dtype(recipe.model.compute_dtype, runtime.device, hidden)
    rows, limits = read_rows(
        runtime, recipe, folder, cfg.data, what="questions",
        max_tokens=rollout.max_prompt_tokens, suffix=cfg.suffix,
    )  # fmt: skip
    sampler = Sampler(len(rows), recipe.run.seed)
    loader = Loader(lambda i: to_prompt(rows.rows[i], limits), recipe.data.workers)
    pool = RewardPool.of(cfg.reward)

    # The engine first: it measures free memory, and the trainer is not there yet.
    sampling_dtype = engine_dtype(recipe, folder, runtime.device)
    engine = open_engine(
        folder,
        rollout,
        device=runtime.device,
        dtype=sampling_dtype,
        max_images=max(len(row.images) for row in rows.rows),
    )
    engine.sleep()
    load = partial(load_sharded, mesh=runtime.mesh, device=runtime.device, config=recipe.model)
    model = load(folder, dtype=dtype, temperature=rollout.temperature)
    reference = None
    if cfg.loss.kl_coef > 0:
        frozen = open_folder(recipe.expand(cfg.reference)) if cfg.reference else folder
        reference = load(frozen, dtype=dtype, temperature=rollout.temperature, trainable=False)
    optimizer = build_adamw(model, cfg.optim)
    sync = WeightSync(
        engine,
        model,
        folder,
        temperature=rollout.temperature,
        tolerance=tolerance_of(recipe, sampling_dtype),
    )
    validator = Validator(
        runtime, recipe, folder, model, stage, temperature=rollout.temperature,
        engine=engine, sync=sync, pool=None if cfg.reward.verdict else pool, suffix=cfg.suffix,
    )  # fmt: skip

    best = Best(runtime, model, folder.path, stage.folder)
    first = 0
    if (saved := checkpoint.latest(stage.folder / "checkpoints")) is not None:
        state = checkpoint.load(saved, model=model, optimizer=optimizer)
        first, sampler.position, best.state = state["step"], state["position"], state["best"]
        runtime.say(f"continuing from {saved}")
    metrics = MetricsWriter(
        stage.folder,
        tensorboard=recipe.run.tensorboard,
        wandb=recipe.run.wandb or None,
        is_main=runtime.is_main,
        total_steps=cfg.steps,
        start_step=first,
        description=cfg.stage,
    )
    metrics.resume(first)
    timer = PhaseTimer()
    rollouts = Rollouts(runtime, recipe, folder, engine, pool, loader, sampler, timer)
    objective = policy_objective(cfg.loss)
    other_terms = cfg.loss.kl_coef > 0 or cfg.loss.entropy_coef != 0
    skip = cfg.skip_zero_advantage and not other_terms
    total_updates = cfg.steps * cfg.updates_per_rollout
    probe = sync()

    timer.reset()
    for step in range(first, cfg.steps):
        # --- sample and grade: n answers to each prompt, on every rank its share ----------------
        groups, drawn = rollouts.draw(step, version=step * cfg.updates_per_rollout)
        engine.sleep()
        with timer("pack"):
            for group in groups:
                scores = [sample.reward for sample in group.samples]
                for sample, advantage in zip(
                    group.samples, group_advantages(scores, cfg.advantage_std), strict=True
                ):
                    sample.advantage = float(advantage)
            # --- pack: every optimizer step of this rollout, the same plan on every rank -------
            size = len(groups) // cfg.updates_per_rollout
            updates, plans, trained = [], [], 0
            for u in range(cfg.updates_per_rollout):
                samples = [s for g in groups[u * size : (u + 1) * size] for s in g.samples]
                weights = loss_weights(
                    [s.num_response_tokens for s in samples],
                    cfg.loss.aggregation,
                    rollout.max_response_tokens,
                )
                if skip:  # their gradient is 0, their part of the weights stays
                    useful = [i for i, s in enumerate(samples) if s.advantage != 0]
                    samples, weights = [samples[i] for i in useful], [weights[i] for i in useful]
                batches, planned = pack(
                    samples, weights, runtime, cfg.token_budget, folder.config, folder.patchify
                )
                trained += len(samples)
                updates.append(batches)
                plans.append(planned)
        # --- log-probs before the update; one update per rollout needs none: its ratio is 1 -----
        every = [batch for batches in updates for batch in batches]
        if cfg.updates_per_rollout > 1:
            with timer("old_logp"):
                for batch, logp in zip(every, forward_only(model, every, runtime), strict=True):
                    batch.old_logp = logp
        if reference is not None:
            with timer("ref_logp"):
                for batch, logp in zip(every, forward_only(reference, every, runtime), strict=True):
                    batch.ref_logp = logp
        # --- update ------------------------------------------------------------------------------
        totals: dict[str, float] = {}
        worst: dict[str, float] = {}
        norms, lr, first_dev = [], 0.0, 0.0
        with timer("update"):
            for u, batches in enumerate(updates):
                sums, maxima = forward_backward(model, batches, objective, runtime)
                norm = clip_gradients(model, cfg.optim.max_grad_norm)
                check_update(step, u, norm, sums, maxima)
                lr = learning_rate(step * cfg.updates_per_rollout + u, total_updates, cfg.optim)
                set_lr(optimizer, lr)
                optimizer.step()
                optimizer.zero_grad()
                norms.append(norm)
                totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
                worst = {k: max(worst.get(k, 0.0), v) for k, v in maxima.items()}
                if u == 0:
                    first_dev = maxima["ratio_dev"]
        with timer("sync"):
            probe = sync()
        # --- look, log, save ---------------------------------------------------------------------
        done = step + 1
        extra: dict[str, float] = {}
        if cfg.eval_every and (done % cfg.eval_every == 0 or done == cfg.steps):
            with timer("validation"):
                extra = validator.measure()
                if cfg.keep == "best":
                    best.offer(done, extra["val/greedy"])
        seconds = timer.seconds()
        tokens = sum(len(s.token_ids) for g in groups for s in g.samples)
        working = (
            sum(seconds.values()) - seconds.get("validation", 0) - seconds.get("checkpoint", 0)
        )
        metrics.log(
            done,
            {
                **rollout_metrics(groups, drawn),
                "loss": totals["loss"] / cfg.updates_per_rollout,
                "lr": lr,
                "grad_norm": sum(norms) / len(norms),
                **means(totals, ["entropy", "kl_ref"]),
                "clip/frac": means(totals, ["clip_low"])["clip_low"]
                + means(totals, ["clip_high"])["clip_high"],
                "clip/dual_frac": means(totals, ["dual_clip"])["dual_clip"],
                "is/truncated_frac": means(totals, ["is_truncated"])["is_truncated"],
                "mismatch/kl": means(totals, ["mismatch_kl"])["mismatch_kl"],
                "mismatch/max_abs": worst["mismatch_max"],
                "mismatch/probe": probe,
                "ratio/first_dev": first_dev,
                "ratio/max_dev": worst["ratio_dev"],
                "update/samples_frac": trained / sum(len(g.samples) for g in groups),
                "tokens": tokens,
                "tokens_per_second": tokens / max(1e-9, working),
                "pack/fill": sum(p.fill for p in plans) / len(plans),
                "pack/filler_frac": max(p.filler for p in plans),
                "pack/imbalance": max(p.imbalance for p in plans),
                "pack/micro_batches": len(every),
                **mfu(3 * sum(p.cost for p in plans), seconds["update"], runtime),
                **extra,
            },
            seconds,
        )
        metrics.log_rollouts(done, groups[: cfg.log_groups])
        if drawn["no_signal_frac"] == 1:
            runtime.say(f"step {done}: no group has a signal; rewards are all equal within groups")
        timer.reset()
        # After the log: killed in between, the run logs this step again; before, never. Its seconds
        # are those of the next step.
        if (cfg.save_every and done % cfg.save_every == 0) or done == cfg.steps:
            with timer("checkpoint"):
                checkpoint.save(
                    stage.folder / "checkpoints",
                    step=done,
                    model=model,
                    optimizer=optimizer,
                    state={"step": done, "position": sampler.position, "best": best.state},
                    recipe=stage.identity,
                )
                best.forget_others()
    metrics.close()
    loader.close()
    if best.state and best.state["step"] < cfg.steps:
        runtime.say("the best model by validation is that of step {step:.0f}".format(**best.state))
        best.restore()
        sync()
    export_folder(model, folder.path, stage.folder / "model", is_main=runtime.is_main)
    runtime.barrier()
    stage.update(steps=cfg.steps, **({"best": best.state} if best.state else {}))
    validator.finish(str(stage.folder / "model"))
    pool.close()
    stage.update(status="done")
    best.close()
    runtime.say(f"{cfg.stage}: {cfg.steps} steps, model in {stage.folder / 'model'}")


if __name__ == "__main__":
    main()
    from ovlt.system.runtime import leave

    leave()
