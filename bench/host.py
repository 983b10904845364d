"""``python bench/host.py``: what building micro-batches costs a step, in core-seconds.

A GRPO step on the model of recipes/smoke.toml (random weights): packing, the reference pass, the
update. Micro-batches are (a) all built before the first pass, with the search for shared prompts
done three times, as it was until 2026-11-27; (b) built when it is their turn; (c) built in a
thread, one ahead of the model. All take turns in one process. Core-seconds are those of all threads
of the process. On two ranks:

    python -m torch.distributed.run --standalone --nproc-per-node 2 bench/host.py --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from shared_prompts import RECIPE, smoke_samples

from ovlt.config import Recipe, RunConfig
from ovlt.config.load import load_recipe
from ovlt.data.worlds import synthetic
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.packed_model import PackedModel
from ovlt.model.parallel import load_sharded
from ovlt.smoke.base import make_folder
from ovlt.system.ahead import ahead
from ovlt.system.collectives import from_rank_zero
from ovlt.system.runtime import Runtime, leave, start
from ovlt.train.feed import MicroBatches
from ovlt.train.loss import loss_weights, policy_objective
from ovlt.train.pack import group_numbers, pack, sharing
from ovlt.train.step import forward_backward, forward_only
from ovlt.types import Sample

WAYS = ("before the first pass", "at their turn", "in a thread")


class InThread(MicroBatches):
    """Micro-batches that a thread builds, one ahead of whoever iterates."""

    def __iter__(self) -> Iterator[PackedBatch]:
        return ahead(super().__iter__(), 1)


def step(
    way: str,
    samples: Sequence[Sample],
    model: PackedModel,
    folder: ModelFolder,
    recipe: Recipe,
    runtime: Runtime,
) -> float:
    """Run a step; return its loss."""
    weights = loss_weights([s.num_response_tokens for s in samples], "token_mean")
    groups = group_numbers(samples)
    lazy, _ = pack(
        samples, weights, runtime, recipe.grpo.token_budget, folder.config, folder.patchify,
        groups=groups,
    )  # fmt: skip
    batches: Sequence[PackedBatch] = lazy
    if way == WAYS[0]:
        for first in range(0, len(samples), 8):  # of each group, and in each micro-batch
            sharing(samples[first : first + 8])
        sharing(samples)
        batches = list(lazy)
    elif way == WAYS[2]:
        batches = InThread([lambda i=i: lazy[i] for i in range(len(lazy))], keep=True)
    for batch, logp in zip(batches, forward_only(model, batches, runtime), strict=True):
        batch.ref_logp = logp
    totals = forward_backward(model, batches, policy_objective(recipe.grpo.loss), runtime)
    model.zero_grad()
    return totals.read(torch.zeros(()))[0]["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="steps of each way")
    parser.add_argument("--threads", type=int, default=2, help="of a rank")
    options = parser.parse_args()
    runtime = start(RunConfig(device="cpu"))
    torch.set_num_threads(options.threads)
    recipe = load_recipe(str(RECIPE), ["--grpo.loss.kl_coef=0.01"])
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        make_folder(home / "model", recipe.base, synthetic.vocabulary_corpus())  # by rank 0
        runtime.barrier()
        folder = open_folder(Path(from_rank_zero(str(home / "model"))))
        model = load_sharded(
            folder, runtime.mesh, runtime.device, recipe.model, dtype=torch.float32
        )
        samples = smoke_samples(recipe, folder, home)
        runtime.barrier()  # rank 0's folder is read
    rng = np.random.default_rng(1)
    for sample in samples:
        sample.engine_logp = np.full(len(sample.token_ids), -3.0, np.float32)
        sample.advantage = float(rng.normal())
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    losses: set[float] = set()
    for _ in range(options.rounds + 1):  # the first warms up
        for way in WAYS:
            runtime.barrier()
            wall, cores = time.perf_counter(), time.process_time()
            losses.add(step(way, samples, model, folder, recipe, runtime))
            seconds[way].append((time.perf_counter() - wall, time.process_time() - cores))
    assert len(losses) == 1, losses
    for way, times in seconds.items():
        walls, core_seconds = (np.array(t[1:]) for t in zip(*times, strict=True))
        everyone = np.mean(runtime.gather_json([float(core_seconds.min()), float(walls.min())]), 0)
        runtime.say(
            f"{way}: {everyone[0]:.3f} core-seconds per rank, {everyone[1]:.3f} s (the least of "
            f"{options.rounds})"
        )
    runtime.close()


if __name__ == "__main__":
    main()
    leave()
