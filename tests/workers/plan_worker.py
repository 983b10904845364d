"""Two ranks, a sharded model in bfloat16: bytes alive after each event, for test_plan.py."""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from helpers.tiny import random_sample

from ovlt.config import ModelConfig, RunConfig, SftOptimConfig
from ovlt.model.load import open_folder
from ovlt.model.parallel import load_sharded
from ovlt.system.runtime import leave, start
from ovlt.train.loss import CROSS_ENTROPY
from ovlt.train.optim import build_adamw
from ovlt.train.pack import collate


def alive() -> int:
    """The least of some looks: a thread of gloo may hold the last buffer a little longer."""
    looks = []
    for _ in range(8):
        looks.append(reachable())
        time.sleep(0.1)
    return min(looks)


def reachable() -> int:
    """Bytes of the storages of all tensors that Python can reach."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules warn when they are merely looked at
        for thing in gc.get_objects():
            for tensor in (thing, getattr(thing, "grad", None)) if type(thing) in KINDS else ():
                if type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter:
                    storage = tensor.untyped_storage()
                    found[storage._cdata] = storage.nbytes()
    return sum(found.values())


KINDS = (torch.Tensor, torch.nn.Parameter)


def main(home: Path) -> None:
    gc.freeze()  # what the imports made is not searched for tensors: a look takes 4 s otherwise
    runtime = start(RunConfig(device="cpu"))
    folder = open_folder(home / "model")
    config = ModelConfig(compute_dtype="bfloat16", activation_checkpointing="full")
    model = load_sharded(folder, runtime.mesh, runtime.device, config, dtype=torch.bfloat16)
    optimizer = build_adamw(model, SftOptimConfig())
    sample = random_sample(folder, np.random.default_rng(runtime.rank), [(84, 56)], 21)
    batch = collate([sample], [0.1], config=folder.config, patchify=folder.patchify)

    def backward(last: bool) -> None:
        model.set_requires_gradient_sync(last)
        model(batch, CROSS_ENTROPY).loss.backward()

    backward(True)
    optimizer.step()
    optimizer.zero_grad()
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    levels = {"state": alive()}
    with torch.no_grad():
        model(batch)
    levels["after a forward without backward"] = alive()
    backward(False)
    levels["after a micro-batch"] = alive()
    backward(True)
    levels["after the last micro-batch"] = alive()
    if runtime.is_main:
        (home / "levels.json").write_text(json.dumps(levels))
    runtime.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
