"""Run by tests/train/test_waits.py: ``waits_worker.py MODEL OUT``; OUT gets what waits, where."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ovlt.system import env

env.apply("cpu")

import numpy as np
import torch

from ovlt.config import LossConfig, ModelConfig, OptimConfig, RunConfig
from ovlt.model.load import open_folder
from ovlt.model.parallel import load_sharded
from ovlt.system.runtime import leave, start
from ovlt.train.loss import CROSS_ENTROPY, policy_objective
from ovlt.train.optim import build_adamw
from ovlt.train.pack import collate
from ovlt.train.step import forward_only, optimizer_step
from ovlt_kernels import waits

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.tiny import random_sample
from helpers.waits import Waits

home, out = Path(sys.argv[1]), Path(sys.argv[2])
runtime = start(RunConfig(device="cpu"))
folder = open_folder(home)
rng = np.random.default_rng(3)
# A shared prompt with an image; another image and text; text alone; nothing at all (the filler).
first = random_sample(folder, rng, [(84, 56)], 4)
again = random_sample(folder, rng, [(84, 56)], 6)
again.prompt, again.token_ids = first.prompt, first.token_ids.copy()
again.loss_mask = first.loss_mask.copy()
again.token_ids[-1] = 9
SAMPLES = [
    [first, again, random_sample(folder, rng, [(56, 56)], 3)],
    [random_sample(folder, rng, [], 5)],
    [],
]
for sample in (s for part in SAMPLES for s in part):
    sample.engine_logp = np.full(len(sample.token_ids), -3.0, np.float32)
    sample.advantage = float(rng.normal())


def batches():
    how = {"config": folder.config, "patchify": folder.patchify}
    return [collate(part, [0.1] * len(part), **how) for part in SAMPLES]


OBJECTIVES = {
    "sft": CROSS_ENTROPY,
    "grpo": policy_objective(LossConfig(kl_coef=0.1, entropy_coef=0.01)),
    "gspo": policy_objective(LossConfig(kl_coef=0.1, ratio="sequence")),
}
# What the operators look at only on a CPU is left out here, as on a GPU.
waits._FREE = frozenset()
seen = {}
config = ModelConfig(activation_checkpointing="mlp")
model = load_sharded(folder, runtime.mesh, runtime.device, config, dtype=torch.float32)
optimizer = build_adamw(model, OptimConfig())
for name, objective in OBJECTIVES.items():
    for number in range(2):  # the first time, a few things are made for good
        made = batches()
        with Waits() as scoring:
            logps = forward_only(model, made, runtime)
        for batch, logp in zip(made, logps, strict=True):
            batch.ref_logp = batch.engine_logp = logp
        with Waits() as update:
            optimizer_step(
                model, optimizer, made, objective, OptimConfig(lr=1e-5), runtime,
                number=number, total=4,
            )  # fmt: skip
        seen[name] = {"forward": scoring.seen, "update": update.seen}
out.write_text(json.dumps(seen))
runtime.close()
leave()
