"""``ovlt grpo [RECIPE]``: group-relative policy optimisation with images. Start reading here.

Follow one image: ``rows.prompt`` decodes it, ``engine.generate`` answers its question n times,
``Rollouts`` grades the answers, ``group_advantages`` compares them, ``pack`` joins them without
padding, ``model(batch, objective)`` runs tower, decoder and head, ``policy_loss`` gives the
gradient, ``optimizer_step`` moves the weights, and ``WeightSync`` streams them back into the
engine.

Equations: DeepSeekMath (arXiv 2402.03300) section 4.1; the switches DAPO (2503.14476), Dr.GRPO
(2503.20783), GSPO (2507.18071).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ovlt.config import GrpoConfig, ModelConfig, Recipe
from ovlt.data.loader import Loader
from ovlt.data.rows import RowReader
from ovlt.data.sampler import Sampler
from ovlt.evaluate.validator import Validator, longest_of, read_evaluation_rows
from ovlt.model import liger
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder, open_folder, open_reference
from ovlt.model.packed_model import PackedModel
from ovlt.model.parallel import load_sharded, same_tower
from ovlt.model.sizes import feature_values
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine, sampling_of
from ovlt.rollout.exchange import bring_images
from ovlt.rollout.groups import RolloutBatch, Rollouts
from ovlt.rollout.open import check_engine, engine_dtype, open_engine, weight_sync
from ovlt.rollout.sync import WeightSync
from ovlt.run.stage import StageFolder
from ovlt.system.runtime import Runtime, compute_dtype
from ovlt.train.advantage import score_groups
from ovlt.train.balance import BatchPlan
from ovlt.train.contents import stage_contents
from ovlt.train.feed import joined
from ovlt.train.footprint import FEATURE_BYTES
from ovlt.train.loss import loss_weights, policy_objective
from ovlt.train.optim import build_adamw
from ovlt.train.pack import group_numbers, image_tokens, pack
from ovlt.train.settle import settle_memory
from ovlt.train.stage import TrainingStage
from ovlt.train.step import Update, forward_only, mfu, optimizer_step, token_mean
from ovlt.types import Group


def train(runtime: Runtime, recipe: Recipe) -> None:
    """Run the stage; every rank executes the same lines."""
    cfg = recipe.grpo
    objective = policy_objective(cfg.loss)
    total_updates = cfg.steps * cfg.updates_per_rollout
    with contextlib.ExitStack() as opened:
        parts = setup(runtime, recipe, opened)
        model, engine, stage, timer = parts.model, parts.engine, parts.stage, parts.stage.timer
        timer.reset()
        for step in range(stage.first, cfg.steps):
            stage.profiler.at(step)
            # Sync, then sample: the engine gets the newest weights; n answers to each prompt are
            # graded, and an image probe among the prompts proves that the weights arrived. Every
            # rank gets the same groups.
            with engine.awake():
                with timer("sync"):
                    parts.sync.send()
                batch = parts.rollouts.draw(step)
            # Score and pack: advantages relative to the group; the samples of each optimizer step
            # joined without padding, by the same plan on every rank.
            with timer("pack"):
                score_groups(batch.groups, use_std=cfg.advantage_std)
                updates = pack_updates(
                    batch.groups, cfg, parts.model_folder, runtime, dtype=parts.dtype
                )
            # Log-probs before the update: the policy's for the ratio, the reference's for the KL.
            add_logprobs(updates, batch.groups, parts, runtime)
            # Update: one optimizer step for each part of the rollout.
            with timer("update"):
                results = [
                    optimizer_step(
                        model, parts.optimizer, update.batches, objective, cfg.optim, runtime,
                        number=step * cfg.updates_per_rollout + u, total=total_updates,
                        first=u == 0, reduce_each=parts.reduce_each,
                    )
                    for u, update in enumerate(updates)
                ]  # fmt: skip
            # Validate, log, save: figures and the best model, the step's line, a checkpoint.
            validation = stage.validate_if_due(step + 1, parts.validator.measure)
            seconds = timer.take()
            frozen = recipe.model.freeze_vision
            values = step_metrics(batch, updates, results, seconds, runtime, frozen_tower=frozen)
            stage.log(step + 1, values | validation, seconds, batch.groups[: cfg.log_groups])
            if batch.no_signal_frac == 1:
                runtime.say(f"step {step + 1}: no group has a signal; their rewards are all equal")
            stage.save_if_due(step + 1, parts.rollouts.sampler.position)
        stage.export()
        parts.validator.finish(stage.folder)
    stage.done()


@dataclass
class Parts:
    """The objects that the loop uses."""

    model_folder: ModelFolder  # of the model that training starts from
    dtype: torch.dtype  # that the model computes in
    model: PackedModel
    reduce_each: bool  # gradients are reduced over ranks after each micro-batch
    reference: PackedModel | None  # frozen, for the KL; None if kl_coef is 0
    frozen_tower: bool  # of the policy, so that an image's features stay what they are
    shared_tower: bool  # it is the reference's too
    optimizer: torch.optim.Optimizer
    engine: Engine
    sync: WeightSync
    rollouts: Rollouts
    validator: Validator
    stage: TrainingStage


def setup(runtime: Runtime, recipe: Recipe, opened: contextlib.ExitStack) -> Parts:
    """Open everything; ``opened`` closes it. Collective."""
    cfg, engine_config = recipe.grpo, recipe.engine
    # Look at everything that the recipe names before anything large is opened: folder, models,
    # every file of rows, limits, rewards. A mistake costs seconds here and hours later.
    stage_folder = StageFolder(runtime, recipe, "grpo", name=cfg.stage, title=cfg.title)
    start = recipe.expand(cfg.start or recipe.model.path)
    model_folder = open_folder(start, recipe.model.chat_template_kwargs)
    liger.should_apply(recipe.model.liger, runtime.device)  # refuses what cannot run
    reader = RowReader(runtime, recipe.model, recipe.data, model_folder)
    rows = reader.questions(
        recipe.expand(cfg.data), max_tokens=cfg.rollout.max_prompt_tokens, suffix=cfg.suffix
    )
    evaluation = read_evaluation_rows(
        reader,
        recipe.evaluate,
        validation=recipe.expand(recipe.data.validation),
        held_out=recipe.expand(recipe.evaluate.data or recipe.data.held_out),
        eval_every=cfg.eval_every,
        max_prompt_tokens=cfg.rollout.max_prompt_tokens,
        suffix=cfg.suffix,
    )
    frozen = open_reference(recipe.expand(cfg.reference) if cfg.loss.kl_coef else "", model_folder)
    # The longest prompt and response of all who ask this engine: rollouts, held-out questions.
    longest = longest_of(cfg.rollout, recipe.evaluate, evaluation)
    samplings = [sampling_of(cfg.rollout)]
    samplings += [sampling_of(recipe.evaluate)] if evaluation.held_out else []
    check_engine(model_folder, engine_config, max_tokens=longest, samplings=samplings)
    # A run that is resumed is made with the same contents as before. Validation questions are part
    # of them if they choose the model.
    made_of = {"grpo.data": (recipe.expand(cfg.data), rows)}
    if cfg.keep == "best" and evaluation.validation is not None:
        made_of["data.validation"] = (recipe.expand(recipe.data.validation), evaluation.validation)
    models, reward = {"start": model_folder, "reference": frozen}, recipe.reward.function
    stage_folder.compare(stage_contents(reader, rows=made_of, models=models, reward=reward))
    pool = opened.enter_context(RewardPool(recipe.reward))
    judge = pool  # grades validation and held-out answers
    if recipe.reward.verdict:
        judge = opened.enter_context(RewardPool(recipe.reward, for_verdicts=True))

    # The engine before the model: vLLM measures the free memory and takes its share of it.
    sampling_dtype = engine_dtype(engine_config, recipe.model, model_folder, runtime.device)
    engine = opened.enter_context(
        open_engine(
            model_folder, engine_config, runtime, dtype=sampling_dtype, max_tokens=longest,
            max_images=max(rows.max_images, evaluation.max_images),
            max_pixels=recipe.model.max_pixels,
        )
    )  # fmt: skip

    model_config, dtype, model, reference = load_models(
        runtime, recipe, model_folder, frozen if cfg.loss.kl_coef > 0 else None
    )
    optimizer = build_adamw(model, cfg.optim)
    # Restores the newest checkpoint if the run is resumed: weights, optimizer, position.
    stage = TrainingStage(
        stage_folder, recipe.run, cfg, model, optimizer, steps=cfg.steps, source=model_folder.path
    )
    opened.callback(stage.metrics.close)
    sync = weight_sync(engine, model, model_folder, engine_config, sampling_dtype)
    loader = Loader(rows.prompt, recipe.data.workers)
    opened.callback(loader.close)
    return Parts(
        model_folder=model_folder,
        dtype=dtype,
        model=model,
        reduce_each=model_config.reduce_gradients == "each",
        reference=reference,
        frozen_tower=recipe.model.freeze_vision,
        shared_tower=(
            recipe.model.freeze_vision and reference is not None and same_tower(model, reference)
        ),
        optimizer=optimizer,
        engine=engine,
        sync=sync,
        rollouts=Rollouts(
            config=cfg,
            reward=recipe.reward,
            seed=recipe.run.seed,
            runtime=runtime,
            chat=model_folder.chat,
            engine=engine,
            sync=sync,
            pool=pool,
            loader=loader,
            sampler=Sampler(len(rows), recipe.run.seed, stage.position),
            timer=stage.timer,
            grade_early=runtime.device.type == "cuda",
        ),
        validator=Validator(
            reader=reader,
            evaluate=recipe.evaluate,
            rows=evaluation,
            open_engine=lambda: (engine, sync),
            pool=judge,
            sampling=replace(sampling_of(cfg.rollout), n=1),
            seed=recipe.run.seed,
        ),
        stage=stage,
    )


def load_models(
    runtime: Runtime, recipe: Recipe, source: ModelFolder, frozen: ModelFolder | None
) -> tuple[ModelConfig, torch.dtype, PackedModel, PackedModel | None]:
    """Return how models are run and in which dtype, the trained one, and the KL's reference."""
    cfg = recipe.grpo
    hidden = int(source.text_config.hidden_size)
    dtype = compute_dtype(recipe.model.compute_dtype, runtime.device, hidden)
    model_config = settle_memory(
        recipe.model, source.config, runtime,
        dtype=dtype, token_budget=cfg.token_budget, reference=frozen is not None,
    )  # fmt: skip

    def load(folder: ModelFolder, *, trainable: bool) -> PackedModel:
        return load_sharded(
            folder, runtime.mesh, runtime.device, model_config,
            dtype=dtype, temperature=cfg.rollout.temperature, trainable=trainable,
        )  # fmt: skip

    model = load(source, trainable=True)
    return model_config, dtype, model, load(frozen, trainable=False) if frozen is not None else None


@dataclass
class PackedUpdate:
    """The micro-batches of one optimizer step."""

    batches: Sequence[PackedBatch]  # of this rank, built when they are first asked for
    plan: BatchPlan  # of all ranks
    num_samples: int  # samples in the update, over all ranks
    used: list[list[set[int]]]  # by rank and micro-batch, the groups whose images it needs
    runs_tower: bool = True  # the update itself; False: passes before it have left the features


def pack_updates(
    groups: Sequence[Group],
    cfg: GrpoConfig,
    model_folder: ModelFolder,
    runtime: Runtime,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[PackedUpdate]:
    """Pack equal parts of the groups, one for each optimizer step of this rollout. Collective."""
    samples = [sample for group in groups for sample in group.samples]
    of_group = [g for g, group in enumerate(groups) for _ in group.samples]
    # Who shares a prompt: found once. Ids decide, not what user code says that a sample answers.
    numbers = group_numbers(samples, share_prompts=cfg.share_prompts)
    if cfg.share_prompts:
        say_strangers(groups, of_group, numbers, runtime)
    skip = skips_samples(cfg)
    # Groups stay whole: the samples of one are in the same update, and share its prompt there.
    size = len(groups) // cfg.updates_per_rollout  # groups per optimizer step
    several_passes = cfg.updates_per_rollout > 1 or cfg.loss.kl_coef > 0
    updates: list[PackedUpdate] = []
    for u in range(cfg.updates_per_rollout):
        part = [i for i, g in enumerate(of_group) if g // size == u]
        # Use all samples: skipped ones still count in the normaliser.
        weights = loss_weights(
            [samples[i].num_response_tokens for i in part],
            cfg.loss.aggregation,
            cfg.rollout.max_response_tokens,
        )
        chosen = [(i, w) for i, w in zip(part, weights, strict=True)
                  if samples[i].advantage != 0 or not skip]  # fmt: skip
        batches, plan = pack(
            [samples[i] for i, _ in chosen], [w for _, w in chosen], runtime, cfg.token_budget,
            model_folder.config, model_folder.patchify, groups=[numbers[i] for i, _ in chosen],
            share_prompts=cfg.share_prompts, dtype=dtype, keep=several_passes,
        )  # fmt: skip
        used = [[{of_group[chosen[i][0]] for i in bin_} for bin_ in bins] for bins in plan.bins]
        updates.append(PackedUpdate(batches, plan, len(chosen), used))
    # Pixels: each rank gets those of the groups that it trains on. No micro-batch is built yet.
    wanted = used_groups(updates)
    wanted[0] |= set(range(min(cfg.log_groups, len(groups))))  # it writes them into the log
    bring_images(runtime, groups, wanted)
    return updates


def used_groups(updates: Sequence[PackedUpdate]) -> list[set[int]]:
    """Return the groups whose images each rank needs."""
    by_rank = zip(*(update.used for update in updates), strict=True)
    return [set[int]().union(*(bin_ for used in of for bin_ in used)) for of in by_rank]


def skips_samples(cfg: GrpoConfig) -> bool:
    """Return whether samples of advantage 0 are left out."""
    # They have no gradient, unless another term of the loss gives them one.
    other_terms = cfg.loss.kl_coef > 0 or cfg.loss.entropy_coef != 0
    return cfg.skip_zero_advantage and not other_terms


def say_strangers(
    groups: Sequence[Group], of_group: Sequence[int], numbers: Sequence[int], runtime: Runtime
) -> None:
    """Say once that samples of a group have not the same prompt; ``numbers`` are the prompts'."""
    prompts: dict[int, set[int]] = {}  # of each group
    for g, number in zip(of_group, numbers, strict=True):
        prompts.setdefault(g, set()).add(number)
    strangers = [groups[g].prompt.id for g, of in prompts.items() if len(of) > 1]
    if strangers:
        runtime.say_once(
            "share_prompts",
            f"grpo.share_prompts: the samples of {strangers[0]} (and of {len(strangers) - 1} "
            "more groups of this step) do not start with the same prompt and images, so each "
            "is packed with a prompt of its own",
        )


def feature_bytes(
    updates: Sequence[PackedUpdate], groups: Sequence[Group], folder: ModelFolder, itemsize: int
) -> int:
    """Bytes of the image features of a rollout, on the rank that has most of them."""
    tokens = [image_tokens(group.prompt, folder.config) for group in groups]
    by_rank = zip(*(update.used for update in updates), strict=True)
    rows = (sum(tokens[g] for used in of for bin_ in used for g in bin_) for of in by_rank)
    return itemsize * feature_values(folder.config) * max(rows)


def add_logprobs(
    updates: Sequence[PackedUpdate], groups: Sequence[Group], parts: Parts, runtime: Runtime
) -> None:
    """Put ``old_logp`` and ``ref_logp`` into the micro-batches, as far as the loss needs them.

    The features of a frozen tower are computed in the first pass over a micro-batch and kept for
    the passes after it, if that of the reference is the same.
    """
    size = feature_bytes(updates, groups, parts.model_folder, parts.dtype.itemsize)
    fits = size <= FEATURE_BYTES  # the same on all ranks, or they would wait for each other
    timer = parts.stage.timer
    if parts.reference is not None:
        # The first pass: it leaves the features of a frozen tower to the passes after it.
        keep = fits and parts.shared_tower
        with timer("ref_logp"):
            batches = joined([update.batches for update in updates])
            logps = forward_only(parts.reference, batches, runtime, keep_features=keep)
            for batch, logp in zip(batches, logps, strict=True):
                batch.ref_logp = logp
        for update in updates:
            update.runs_tower = not keep
    # The first update of a rollout computes them itself: its weights are those of before.
    if later := updates[1:]:
        keep = fits and parts.frozen_tower and later[0].runs_tower
        with timer("old_logp"):
            batches = joined([update.batches for update in later])
            logps = forward_only(parts.model, batches, runtime, keep_features=keep)
            for batch, logp in zip(batches, logps, strict=True):
                batch.old_logp = logp
        for update in later:
            update.runs_tower = update.runs_tower and not keep


def step_metrics(
    batch: RolloutBatch,
    updates: Sequence[PackedUpdate],
    results: Sequence[Update],
    seconds: dict[str, float],
    runtime: Runtime,
    *,
    frozen_tower: bool,
) -> dict[str, float]:
    """Return the metrics of a step; docs/metrics.md explains each name."""
    plans = [
        update.plan if update.runs_tower else replace(update.plan, tower=0.0) for update in updates
    ]
    num_samples = sum(len(g.samples) for g in batch.groups)
    idle = ("validation", "checkpoint")
    # Throughput excludes validation and checkpoints.
    working = max(1e-9, sum(value for phase, value in seconds.items() if phase not in idle))
    computed = sum(plan.tokens for plan in plans)
    return {
        **batch.metrics(),
        # The policy: mean over the step's updates, or per token of all of them.
        "loss": sum(r.sums["loss"] for r in results) / len(results),
        "lr": results[-1].lr,
        "grad_norm": sum(r.grad_norm for r in results) / len(results),
        "entropy": token_mean(results, "entropy"),
        "kl_ref": token_mean(results, "kl_ref"),
        # Off-policy: how much is clipped, and how far engine and trainer are apart.
        "clip/frac": token_mean(results, "clip_low", "clip_high"),
        "clip/dual_frac": token_mean(results, "dual_clip"),
        "is/truncated_frac": token_mean(results, "is_truncated"),
        "mismatch/kl": token_mean(results, "mismatch_kl"),
        "mismatch/max_abs": max(r.maxima["mismatch_max"] for r in results),
        "ratio/first_dev": results[0].maxima["ratio_dev"],
        "ratio/max_dev": max(r.maxima["ratio_dev"] for r in results),
        # Throughput and packing.
        "update/samples_frac": sum(update.num_samples for update in updates) / num_samples,
        # "computed": what the update runs through the decoder, a shared prompt once.
        "tokens": batch.num_tokens,
        "tokens_per_second": batch.num_tokens / working,
        "tokens_computed": computed,
        "tokens_computed_per_second": computed / working,
        "pack/fill": sum(plan.fill for plan in plans) / len(plans),
        "pack/filler_frac": max(plan.filler for plan in plans),
        "pack/imbalance": max(plan.imbalance for plan in plans),
        "pack/micro_batches": sum(len(update.batches) for update in updates),
        **mfu(plans, seconds["update"], runtime, frozen_tower=frozen_tower),
    }


if __name__ == "__main__":
    from ovlt.__main__ import rank

    rank("grpo")
