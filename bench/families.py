"""``python bench/families.py``: an update of each family of models, at equal sizes.

Times forward and backward of a GRPO update: 16 prompts with an image of 36 tokens and eight
responses each, random weights, float32. The families take turns in one process, and the least
core-seconds of each count. A family may be slower than the first only by its own extra FLOPs
(``ovlt/model/sizes.py``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from ovlt.system import env

env.apply("cpu")

import torch
from shared_prompts import RECIPE, N

from ovlt.config import RunConfig
from ovlt.config.load import load_recipe
from ovlt.data.worlds import synthetic
from ovlt.model import sizes
from ovlt.model.families import NAMES
from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.parallel import load_sharded
from ovlt.smoke.base import make_folder
from ovlt.system.runtime import Runtime, leave, start
from ovlt.train.loss import loss_weights, policy_objective
from ovlt.train.pack import group_numbers, pack
from ovlt.train.step import FORWARD_AND_BACKWARD, forward_backward
from ovlt.types import Prompt, Sample

SIZES = [
    "--base.hidden=256", "--base.layers=8", "--base.intermediate=768", "--base.vision_hidden=192",
    "--base.vision_depth=4", "--base.vision_intermediate=512",
]  # fmt: skip
PROMPTS = 16
TEXT, RESPONSE = 64, 48  # tokens of a prompt besides its image, and of a response


def samples_of(folder: ModelFolder) -> list[Sample]:
    """Prompts with an image of 36 tokens, with ``N`` responses each, advantages, log-probs."""
    rng = np.random.default_rng(0)
    allowed = np.setdiff1d(np.arange(folder.config.text_config.vocab_size), folder.banned)
    side = 6 * sizes.merged_patch(folder.config)
    samples: list[Sample] = []
    for i in range(PROMPTS):
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        ids = folder.chat.prompt_ids("<image>", [sizes.image_grid(folder.config, side, side)])
        ids = np.concatenate([ids, rng.choice(allowed, TEXT)])
        prompt = Prompt(str(i), "bench", "", "", ids, (image,))
        for _ in range(N):
            whole = np.concatenate([ids, rng.choice(allowed, RESPONSE)])
            sample = Sample(prompt, whole, np.arange(len(whole)) >= len(ids))
            sample.engine_logp = np.full(len(whole), -3.0, np.float32)
            sample.advantage = float(rng.normal())
            samples.append(sample)
    return samples


class Case:
    """A model of one family, and its update."""

    def __init__(self, family: str, home: Path, runtime: Runtime) -> None:
        recipe = load_recipe(str(RECIPE), [*SIZES, f"--base.family={family}"])
        make_folder(home / family, recipe.base, synthetic.vocabulary_corpus())
        folder = open_folder(home / family)
        self.runtime, self.objective = runtime, policy_objective(recipe.grpo.loss)
        self.model = load_sharded(
            folder, runtime.mesh, runtime.device, recipe.model, dtype=torch.float32
        )
        samples = samples_of(folder)
        self.batches, plan = pack(
            samples, loss_weights([s.num_response_tokens for s in samples], "token_mean"), runtime,
            2048, folder.config, folder.patchify, groups=group_numbers(samples),
        )  # fmt: skip
        self.flops = FORWARD_AND_BACKWARD * (plan.text + plan.tower)
        self.seconds: list[float] = []

    def update(self) -> None:
        before = time.process_time()
        forward_backward(self.model, self.batches, self.objective, self.runtime)
        self.seconds.append(time.process_time() - before)
        self.model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="updates of each family")
    options = parser.parse_args()
    runtime = start(RunConfig(device="cpu"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        cases = {family: Case(family, Path(name), runtime) for family in NAMES}
        for _ in range(options.rounds + 1):  # the first warms up
            for case in cases.values():
                case.update()
    first = next(iter(cases.values()))
    for family, case in cases.items():
        least = min(case.seconds[1:])
        print(
            f"{family:12s} {least:7.3f} core-seconds, {least / min(first.seconds[1:]):5.3f} times; "
            f"{case.flops / 1e9:7.1f} GFLOP, {case.flops / first.flops:5.3f} times"
        )
    runtime.close()


if __name__ == "__main__":
    main()
    leave()
