"""Run by tests/train/test_recurrent_step.py on one rank and on two, with MODEL and OUT.

One update of SFT with prompts shared and with copies; rank 0 writes the gradients to OUT.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from ovlt.system import env

env.apply("cpu")

import numpy as np
import torch
from safetensors.torch import save_file

from ovlt.config import ModelConfig, RunConfig
from ovlt.model.load import open_folder
from ovlt.model.parallel import load_sharded
from ovlt.system.runtime import leave, start
from ovlt.train.loss import CROSS_ENTROPY
from ovlt.train.pack import group_numbers, pack
from ovlt.train.step import forward_backward

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.tiny import random_sample

SIZES = [[(64, 96)], [], [(32, 128)], []]


def main(path: Path, out: Path) -> None:
    runtime = start(RunConfig(device="cpu"))
    folder, rng = open_folder(path), np.random.default_rng(5)
    samples = [random_sample(folder, rng, sizes, 70) for sizes in SIZES]
    for length in (66, 2, 9):  # three more answers to the first question
        prompt = samples[0].prompt.token_ids
        ids = np.concatenate([prompt, rng.integers(5, 200, length)])
        samples.append(
            replace(samples[0], token_ids=ids, loss_mask=np.arange(len(ids)) >= len(prompt))
        )
    model = load_sharded(folder, runtime.mesh, runtime.device, ModelConfig(), dtype=torch.float32)
    values: dict[str, torch.Tensor] = {}
    for name, share in (("shared", True), ("copies", False)):
        micro, _ = pack(
            samples, [0.01] * len(samples), runtime, 300, folder.config, folder.patchify,
            groups=group_numbers(samples), share_prompts=share,
        )  # fmt: skip
        model.zero_grad()
        forward_backward(model, micro, CROSS_ENTROPY, runtime)
        for parameter, value in model.named_parameters():
            assert value.grad is not None, parameter
            values[f"{name}/{parameter}"] = value.grad.full_tensor().contiguous()
    if runtime.is_main:
        save_file(values, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
