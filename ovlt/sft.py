"""``ovlt sft [RECIPE]``: supervised fine-tuning on sharegpt messages, packed.

Cross-entropy on the assistant's tokens, mean over all such tokens of the optimizer step, no matter
on which ranks and in which micro-batches they are. ``train`` is the whole loop.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ovlt.config import Recipe
from ovlt.data.loader import Loader
from ovlt.data.rows import GoodRows, RowReader
from ovlt.data.sampler import Sampler
from ovlt.evaluate.validator import Validator, read_evaluation_rows
from ovlt.model import liger
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.packed_model import PackedModel
from ovlt.model.parallel import load_sharded
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine, sampling_of
from ovlt.rollout.open import check_engine, engine_dtype, open_engine, weight_sync
from ovlt.rollout.sync import WeightSync
from ovlt.run.stage import StageFolder
from ovlt.system.runtime import Runtime, compute_dtype
from ovlt.train.balance import BatchPlan, Extent, plan
from ovlt.train.contents import stage_contents
from ovlt.train.feed import MicroBatches
from ovlt.train.loss import CROSS_ENTROPY, loss_weights
from ovlt.train.optim import build_adamw
from ovlt.train.pack import collate
from ovlt.train.prompts import prompt_length, shared_prompts
from ovlt.train.settle import settle_memory
from ovlt.train.stage import TrainingStage
from ovlt.train.step import Update, mfu, optimizer_step, token_mean
from ovlt.types import Sample


def train(runtime: Runtime, recipe: Recipe) -> None:
    """Run the stage; every rank executes the same lines."""
    cfg = recipe.sft
    # Look at everything that the recipe names before the model is loaded: the folder, the rows, and
    # in the validator questions, limits and reward. A mistake costs seconds here and hours later.
    stage_folder = StageFolder(runtime, recipe, "sft", name=cfg.stage, title=cfg.title)
    start = recipe.expand(cfg.start or recipe.model.path)
    model_folder = open_folder(start, recipe.model.chat_template_kwargs)
    liger.should_apply(recipe.model.liger, runtime.device)  # refuses what cannot run
    reader = RowReader(runtime, recipe.model, recipe.data, model_folder)
    # A row beyond the model's context would be trained on positions that no engine serves.
    context = int(model_folder.text_config.max_position_embeddings)
    path = recipe.expand(cfg.data)
    rows = reader.conversations(path, max_tokens=min(cfg.token_budget, context))
    # A run that is resumed is made with the same rows and model as before.
    stage_folder.compare(
        stage_contents(reader, rows={"sft.data": (path, rows)}, models={"start": model_folder})
    )
    # A step sees batch_samples rows, all ranks together; a batch may go on into the next epoch.
    steps = cfg.steps or math.ceil(cfg.epochs * len(rows) / cfg.batch_samples)
    hidden = int(model_folder.text_config.hidden_size)
    dtype = compute_dtype(recipe.model.compute_dtype, runtime.device, hidden)

    model_config = settle_memory(
        recipe.model, model_folder.config, runtime,
        dtype=dtype, token_budget=cfg.token_budget, reference=False,
    )  # fmt: skip

    @functools.cache
    def load() -> PackedModel:
        return load_sharded(model_folder, runtime.mesh, runtime.device, model_config, dtype=dtype)

    with contextlib.ExitStack() as opened:
        validator = open_validator(recipe, reader, load, opened)
        model = load()
        optimizer = build_adamw(model, cfg.optim)
        loader = Loader(rows.sample, recipe.data.workers)
        opened.callback(loader.close)
        stage = TrainingStage(
            stage_folder, recipe.run, cfg, model, optimizer, steps=steps, source=model_folder.path
        )
        opened.callback(stage.metrics.close)
        batches = Batches(rows, model_folder, runtime, loader, cfg.token_budget, dtype)
        order, timer = Sampler(len(rows), recipe.run.seed), stage.timer
        timer.reset()
        for step in range(stage.first, steps):
            stage.profiler.at(step)
            # Pack: this step's micro-batches; the images of the next step are decoded meanwhile.
            with timer("data"):
                chosen, upcoming = (
                    order.at(n * cfg.batch_samples, cfg.batch_samples) for n in (step, step + 1)
                )
                micro_batches, packing = batches.make(chosen)
                batches.prefetch(upcoming)
            # Update: one optimizer step over all of them.
            with timer("update"):
                update = optimizer_step(
                    model, optimizer, micro_batches, CROSS_ENTROPY, cfg.optim, runtime,
                    number=step, total=steps,
                    reduce_each=model_config.reduce_gradients == "each",
                )  # fmt: skip
            # Validate, log, save: figures, the step's line, a checkpoint.
            validation = stage.validate_if_due(step + 1, validator.measure)
            seconds = timer.take()
            frozen = recipe.model.freeze_vision
            values = step_metrics(update, packing, seconds, runtime, frozen_tower=frozen)
            values["pack/micro_batches"] = len(micro_batches)
            stage.log(step + 1, values | validation, seconds)
            stage.save_if_due(step + 1, (step + 1) * cfg.batch_samples)
        stage.export()
        validator.finish(stage_folder)
    stage.done()


@dataclass
class Batches:
    """Makes the micro-batches of a step. Planning needs no pixels, so all ranks plan alike."""

    rows: GoodRows
    model_folder: ModelFolder
    runtime: Runtime
    loader: Loader[Sample]
    token_budget: int  # most tokens of a micro-batch
    dtype: torch.dtype  # that the model computes in

    def plan(self, chosen: Sequence[int]) -> tuple[BatchPlan, list[int]]:
        """Which of the rows ``chosen`` goes into which micro-batch of which rank; their groups."""
        rows = [self.rows[i] for i in chosen]
        # Several traces of one question share its prompt: a group, as GRPO's samples are.
        # It ends where the first assistant turn begins; images are told apart unread.
        before = [prompt_length(row.loss_mask) for row in rows]
        groups = shared_prompts(
            [row.token_ids[:n] for row, n in zip(rows, before, strict=True)],
            [[image.key for image in row.images] for row in rows],
        )
        group_of = {i: number for number, group in enumerate(groups) for i in group}
        numbers = [group_of[i] for i in range(len(rows))]
        extents = [
            Extent(
                tokens=len(row.token_ids),
                grids=row.grids,
                group=numbers[i],
                name=row.id,
                prompt=before[i],
                labels=row.num_labels,
            )
            for i, row in enumerate(rows)
        ]
        packing = plan(
            extents,
            ranks=self.runtime.world_size,
            budget=self.token_budget,
            config=self.model_folder.config,
        )
        return packing, numbers

    def make(self, chosen: Sequence[int]) -> tuple[Sequence[PackedBatch], BatchPlan]:
        """Return this rank's micro-batches, built when it is their turn, and the plan of all ranks.

        Only their images are decoded ahead.
        """
        packing, groups = self.plan(chosen)
        # Use all rows of the step: the normaliser counts the tokens of every rank.
        weights = loss_weights([self.rows[i].num_labels for i in chosen], "token_mean")

        def build(places: Sequence[int]) -> PackedBatch:
            return collate(
                self.loader.get([chosen[i] for i in places]),
                [weights[i] for i in places],
                config=self.model_folder.config,
                patchify=self.model_folder.patchify,
                groups=[groups[i] for i in places],
                dtype=self.dtype,
            )

        mine = packing.bins[self.runtime.rank]
        self.loader.prefetch([chosen[i] for places in mine for i in places])
        makers = [functools.partial(build, places) for places in mine]
        return MicroBatches(makers, keep=False), packing

    def prefetch(self, chosen: Sequence[int]) -> None:
        """Start to decode this rank's images of a later step."""
        # `make` plans again; that is cheaper than storing plans.
        mine = self.plan(chosen)[0].bins[self.runtime.rank]
        self.loader.prefetch([chosen[i] for places in mine for i in places])


def open_validator(
    recipe: Recipe,
    reader: RowReader,
    load: Callable[[], PackedModel],
    opened: contextlib.ExitStack,
) -> Validator:
    """Return the validator; ``opened`` closes its engine.

    The engine is opened here if anything will be measured, and sleeps: before the model, since vLLM
    takes its share of what is free, and a GPU that is too small ends the run now, not at the first
    validation. ``load`` returns the model, and is not called before the first use.
    """
    cfg, runtime, model_folder = recipe.evaluate, reader.runtime, reader.folder
    rows = read_evaluation_rows(
        reader,
        cfg,
        validation=recipe.expand(recipe.data.validation),
        held_out=recipe.expand(cfg.data or recipe.data.held_out),
        eval_every=recipe.sft.eval_every,
        max_prompt_tokens=cfg.max_prompt_tokens,
    )

    dtype = engine_dtype(recipe.engine, recipe.model, model_folder, runtime.device)
    sampler = pool = None
    # Now, so that a broken reward or an impossible limit fails before the training.
    if rows.any:
        samplings = [sampling_of(cfg)]
        check_engine(model_folder, recipe.engine, max_tokens=cfg.max_tokens, samplings=samplings)
        pool = opened.enter_context(RewardPool(recipe.reward, for_verdicts=True))
        sampler = opened.enter_context(
            open_engine(
                model_folder, recipe.engine, runtime,
                dtype=dtype, max_tokens=cfg.max_tokens, max_images=rows.max_images,
                max_pixels=recipe.model.max_pixels,
            )
        )  # fmt: skip

    @functools.cache
    def engine() -> tuple[Engine, WeightSync]:
        assert sampler is not None  # there is something to measure
        return sampler, weight_sync(sampler, load(), model_folder, recipe.engine, dtype)

    return Validator(
        reader=reader,
        evaluate=cfg,
        rows=rows,
        open_engine=engine,
        pool=pool,
        sampling=replace(sampling_of(cfg), n=1),
        seed=recipe.run.seed,
    )


def step_metrics(
    update: Update,
    packing: BatchPlan,
    seconds: dict[str, float],
    runtime: Runtime,
    *,
    frozen_tower: bool,
) -> dict[str, float]:
    """Return the metrics of a step; docs/metrics.md explains each name."""
    working = max(1e-9, seconds["data"] + seconds["update"])
    return {
        # Means over the step's labelled tokens, of all ranks.
        "loss": update.sums["loss"],
        "lr": update.lr,
        "grad_norm": update.grad_norm,
        "nll": token_mean([update], "nll"),
        "entropy": token_mean([update], "entropy"),
        # Throughput, and what packing costs: empty places, and ranks that wait for others.
        # "computed": a shared prompt counts once.
        "tokens": packing.sample_tokens,
        "tokens_per_second": packing.sample_tokens / working,
        "tokens_computed": packing.tokens,
        "tokens_computed_per_second": packing.tokens / working,
        "pack/fill": packing.fill,
        "pack/filler_frac": packing.filler,
        "pack/imbalance": packing.imbalance,
        **mfu([packing], seconds["update"], runtime, frozen_tower=frozen_tower),
    }


if __name__ == "__main__":
    from ovlt.__main__ import rank

    rank("sft")
