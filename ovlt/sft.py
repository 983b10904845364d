"""``torchrun -m ovlt.sft [RECIPE]``: supervised fine-tuning on sharegpt messages, packed.

Cross-entropy on the assistant's tokens, mean over all such tokens of the optimizer step, whatever
ranks and micro-batches they fall on. The loop below is the whole of it.
"""

from __future__ import annotations

import math
from typing import Any

from ovlt.config import Recipe
from ovlt.config.load import command_line


def main() -> None:
    recipe = command_line("sft", "Supervised fine-tuning; loss on assistant tokens.", "sft")
    from ovlt.system import env

    env.apply("cpu" if recipe.run.device == "cpu" else env.machine())
    from ovlt.smoke.make import ensure_inputs
    from ovlt.system.runtime import running

    with running("sft", recipe.run) as runtime:
        ensure_inputs(runtime, recipe, "sft")
        train(runtime, recipe)


def train(runtime: Any, recipe: Recipe) -> None:
    """Run the stage: rows -> packed micro-batches -> updates -> model folder -> figures."""
    from ovlt.data.loader import Loader
    from ovlt.data.rows import read_rows
    from ovlt.data.sampler import Sampler
    from ovlt.data.sources import to_sample
    from ovlt.evaluate.validator import Validator
    from ovlt.model.load import open_folder
    from ovlt.model.parallel import load_sharded
    from ovlt.model.weights import export_folder
    from ovlt.run.metrics import MetricsWriter, PhaseTimer
    from ovlt.run.stage import Stage
    from ovlt.system.runtime import compute_dtype
    from ovlt.train import checkpoint
    from ovlt.train.loss import CROSS_ENTROPY, loss_weights
    from ovlt.train.optim import build_adamw, clip_gradients, learning_rate, set_lr
    from ovlt.train.pack import Extent, Plan, collate, plan
    from ovlt.train.step import check_update, forward_backward, means, mfu

    cfg = recipe.sft
    stage = Stage(runtime, recipe, cfg.stage, cfg.title, "sft")
    folder = open_folder(recipe.expand(cfg.start or recipe.model.path))
    dtype = compute_dtype(
        recipe.model.compute_dtype, runtime.device, int(folder.config.text_config.hidden_size)
    )
    model = load_sharded(folder, runtime.mesh, runtime.device, recipe.model, dtype=dtype)
    optimizer = build_adamw(model, cfg.optim)
    rows, limits = read_rows(
        runtime, recipe, folder, cfg.data, what="conversations", max_tokens=cfg.token_budget
    )
    order = Sampler(len(rows), recipe.run.seed)
    steps = cfg.steps or math.ceil(cfg.epochs * len(rows) / cfg.batch_samples)
    loader = Loader(lambda i: to_sample(rows.rows[i], limits), recipe.data.workers)
    validator = Validator(runtime, recipe, folder, model, stage, temperature=1.0)

    first = 0
    if (saved := checkpoint.latest(stage.folder / "checkpoints")) is not None:
        state = checkpoint.load(saved, model=model, optimizer=optimizer)
        first = state["step"]
        runtime.say(f"continuing from {saved}")
    metrics = MetricsWriter(
        stage.folder,
        tensorboard=recipe.run.tensorboard,
        wandb=recipe.run.wandb or None,
        is_main=runtime.is_main,
        total_steps=steps,
        start_step=first,
        description=cfg.stage,
    )
    metrics.resume(first)
    timer = PhaseTimer()

    def lay_out(step: int) -> tuple[list[int], Plan, list[float]]:
        """Rows of a step, their micro-batches, weights. Needs no pixels: the same on every rank."""
        batch = order.at(step * cfg.batch_samples, cfg.batch_samples)
        chosen = [rows.rows[i] for i in batch]
        planned = plan(
            [Extent(len(row.token_ids), row.grids, i, row.id) for i, row in enumerate(chosen)],
            ranks=runtime.world_size,
            budget=cfg.token_budget,
            config=folder.config,
        )
        labelled = [row.num_labels for row in chosen]
        return batch, planned, loss_weights(labelled, "token_mean")

    layout = lay_out(first)
    timer.reset()
    for step in range(first, steps):
        with timer("data"):
            batch, planned, weights = layout
            micro = [
                collate(
                    loader.get([batch[i] for i in bin_]),
                    [weights[i] for i in bin_],
                    config=folder.config,
                    patchify=folder.patchify,
                )
                for bin_ in planned.bins[runtime.rank]
            ]
            layout = lay_out(step + 1)  # its images are decoded while this step computes
            loader.prefetch([layout[0][i] for bin_ in layout[1].bins[runtime.rank] for i in bin_])
        with timer("update"):
            sums, _ = forward_backward(model, micro, CROSS_ENTROPY, runtime)
            norm = clip_gradients(model, cfg.optim.max_grad_norm)
            check_update(step, 0, norm, sums, {})
            lr = learning_rate(step, steps, cfg.optim)
            set_lr(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        extra: dict[str, float] = {}
        if cfg.eval_every and (done % cfg.eval_every == 0 or done == steps):
            with timer("validation"):
                extra = validator.measure()
        seconds = timer.seconds()
        tokens = sum(len(rows.rows[i].token_ids) for i in batch)
        metrics.log(
            done,
            {
                "loss": sums["loss"],
                "lr": lr,
                "grad_norm": norm,
                **means(sums, ["nll", "entropy"]),
                "tokens": tokens,
                "tokens_per_second": tokens / max(1e-9, seconds["data"] + seconds["update"]),
                "pack/fill": planned.fill,
                "pack/filler_frac": planned.filler,
                "pack/imbalance": planned.imbalance,
                "pack/micro_batches": len(micro),
                **mfu(3 * planned.cost, seconds["update"], runtime),
                **extra,
            },
            seconds,
        )
        timer.reset()
        # After the log: killed in between, the run logs this step again; before, never. Its seconds
        # are those of the next step.
        if (cfg.save_every and done % cfg.save_every == 0) or done == steps:
            with timer("checkpoint"):
                checkpoint.save(
                    stage.folder / "checkpoints",
                    step=done,
                    model=model,
                    optimizer=optimizer,
                    state={"step": done, "position": done * cfg.batch_samples},
                    recipe=stage.identity,
                )
    metrics.close()
    loader.close()
    export_folder(model, folder.path, stage.folder / "model", is_main=runtime.is_main)
    runtime.barrier()
    stage.update(steps=steps)
    validator.finish(str(stage.folder / "model"))
    stage.update(status="done")
    runtime.say(f"{cfg.stage}: {steps} steps, model in {stage.folder / 'model'}")


if __name__ == "__main__":
    main()
    from ovlt.system.runtime import leave

    leave()
