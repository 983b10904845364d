"""``python bench/shared_prompts.py``: a training step with shared prompts, and with copies of them.

Times the passes of a GRPO step on the model of recipes/smoke.toml (random weights): the update,
forward and backward, and the pass for reference log-probs, forward only. Both ways take turns in
one process, and the shortest time of each counts. Then the peak of memory of an update in one
micro-batch.

"smoke": the first questions of its world, each with eight traces as responses, packed as the recipe
says. "long prompts": prompts of 256 tokens with eight responses of 64.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ovlt.system import env

env.apply("cpu")

import torch
from timing import peak_mib

from ovlt.config import Recipe, RunConfig
from ovlt.config.load import load_recipe
from ovlt.data.sources import Limits, load_conversations, to_sample
from ovlt.data.worlds import synthetic
from ovlt.model import sizes
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.packed_model import PackedModel
from ovlt.model.parallel import load_sharded
from ovlt.smoke.base import make_folder
from ovlt.system.runtime import start
from ovlt.train.balance import BatchPlan
from ovlt.train.loss import loss_weights, policy_objective
from ovlt.train.pack import group_numbers, pack
from ovlt.train.step import forward_backward, forward_only
from ovlt.types import Prompt, Sample

RECIPE = Path(__file__).parents[1] / "recipes" / "smoke.toml"
N = 8  # responses per prompt
PROMPTS = {"smoke": 32, "long prompts": 8}


def smoke_samples(recipe: Recipe, folder: ModelFolder, home: Path) -> list[Sample]:
    """Questions of the world with ``N`` traces each."""
    world = recipe.synthetic
    spec = synthetic.WorldSpec(size=world.size)
    items = list(synthetic.generate(world.families, "train", PROMPTS["smoke"], 3, spec))
    rows = synthetic.trace_rows([item for item in items for _ in range(N)], world.styles, 0)
    synthetic.write_sft(rows, home / "traces.parquet")
    limits = Limits(
        factor=sizes.merged_patch(folder.config),
        min_pixels=recipe.model.min_pixels or folder.pixel_range[0],
        max_pixels=recipe.model.max_pixels,
        max_tokens=recipe.grpo.token_budget,
    )
    loaded = load_conversations(home / "traces.parquet", folder.chat, limits)
    return [to_sample(row, limits) for row in loaded]


def long_samples(folder: ModelFolder) -> list[Sample]:
    """Prompts of 256 tokens, an image of 64 among them, with ``N`` responses of 64."""
    rng = np.random.default_rng(0)
    allowed = np.setdiff1d(np.arange(folder.config.text_config.vocab_size), folder.banned)
    samples = []
    for i in range(PROMPTS["long prompts"]):
        image = rng.integers(0, 256, (224, 224, 3), np.uint8)
        ids = folder.chat.prompt_ids("<image>", [sizes.image_grid(folder.config, 224, 224)])
        ids = np.concatenate([ids, rng.choice(allowed, 256 - len(ids))])
        prompt = Prompt(str(i), "bench", "", "", ids, (image,))
        for _ in range(N):
            whole = np.concatenate([ids, rng.choice(allowed, 64)])
            samples.append(Sample(prompt, whole, np.arange(len(whole)) >= len(ids)))
    return samples


class Way:
    """One way of packing the samples, and the passes over it."""

    def __init__(
        self, samples: Sequence[Sample], folder: ModelFolder, budget: int, *, share: bool
    ) -> None:
        weights = loss_weights([s.num_response_tokens for s in samples], "token_mean")
        packed = pack(
            samples,
            weights,
            RUNTIME,
            budget,
            folder.config,
            folder.patchify,
            groups=group_numbers(samples, share_prompts=share),
            share_prompts=share,
        )
        self.batches: Sequence[PackedBatch] = packed[0]
        self.plan: BatchPlan = packed[1]

    def update(self, model: PackedModel, recipe: Recipe) -> None:
        forward_backward(model, self.batches, policy_objective(recipe.grpo.loss), RUNTIME)
        model.zero_grad()

    def reference(self, model: PackedModel) -> None:
        forward_only(model, self.batches, RUNTIME)


def shortest(runs: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Return the least seconds of each, taking turns."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds + 1):  # one to warm up, which is never the least
        for i, run in enumerate(runs):
            began = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - began)
    return best


def measure(
    name: str, samples: list[Sample], folder: ModelFolder, model: PackedModel, recipe: Recipe,
    rounds: int,
) -> list[str]:  # fmt: skip
    """Return the lines of the table for one case."""
    rng = np.random.default_rng(1)
    for sample in samples:
        sample.engine_logp = np.full(len(sample.token_ids), -3.0, np.float32)
        sample.advantage = float(rng.normal())
    shared, copies = (
        Way(samples, folder, recipe.grpo.token_budget, share=share) for share in (True, False)
    )
    tokens, all_tokens = shared.plan.tokens, copies.plan.tokens
    mean = [len(samples[0].token_ids) - samples[0].num_response_tokens]
    responses = sum(s.num_response_tokens for s in samples) / len(samples)
    lines = []
    lines.append(
        f"{name}: prompt of {mean[0]} tokens, responses of {responses:.0f} on average, n = {N}; "
        f"tokens {all_tokens} -> {tokens} ({all_tokens / tokens:.2f} x), micro-batches "
        f"{len(copies.batches)} -> {len(shared.batches)}"
    )
    for title, runs in (
        ("update", [lambda w=w: w.update(model, recipe) for w in (copies, shared)]),
        ("reference", [lambda w=w: w.reference(model) for w in (copies, shared)]),
    ):
        before, after = shortest(runs, rounds)
        lines.append(
            f"  {title}: {before * 1e3:.0f} -> {after * 1e3:.0f} ms, {before / after:.2f} x faster"
        )
    # Memory: a few whole groups in one micro-batch, so that only the tokens differ.
    few = samples[: 4 * N]
    ways = [Way(few, folder, 10**6, share=share) for share in (False, True)]
    peaks = [min(peak_mib(lambda w=w: w.update(model, recipe)) for _ in range(5)) for w in ways]
    tokens = [way.plan.tokens for way in ways]
    each, saved = peaks[0] / tokens[0], (peaks[0] - peaks[1]) / (tokens[0] - tokens[1])
    lines.append(
        f"  peak of one micro-batch of 4 groups: {peaks[0]:.0f} -> {peaks[1]:.0f} MiB for "
        f"{tokens[0]} -> {tokens[1]} tokens: {each * 1024:.0f} KiB for each token, "
        f"{saved * 1024:.0f} KiB less for each token less"
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="times that each pass is timed")
    rounds = parser.parse_args().rounds
    recipe = load_recipe(str(RECIPE))
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        make_folder(home / "model", recipe.base, synthetic.vocabulary_corpus())
        folder = open_folder(home / "model")
        model = load_sharded(
            folder, RUNTIME.mesh, RUNTIME.device, recipe.model, dtype=torch.float32
        )
        cases = {
            "smoke": smoke_samples(recipe, folder, home),
            "long prompts": long_samples(folder),
        }
        for case, samples in cases.items():
            of_case = recipe
            if case == "long prompts":  # a whole group of copies fits into a micro-batch
                of_case = load_recipe(str(RECIPE), ["--grpo.token_budget=2560"])
            print("\n".join(measure(case, samples, folder, model, of_case, rounds)), flush=True)


if __name__ == "__main__":
    RUNTIME = start(RunConfig(device="cpu"))
    main()
    RUNTIME.close()
