"""FLOPs and bytes of the plan against a real, tiny model on a CPU."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import WORKERS, Command, Server
from helpers.tiny import random_sample, tiny_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ovlt.model import attention
from ovlt.model.families import NAMES, qwen3_5
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import empty_model, fill_buffers
from ovlt.model.parallel import recompute
from ovlt.model.sizes import (
    decoder_activations,
    decoder_flops,
    head_flops,
    mlp_flops,
    parameters,
    tower_activations,
    tower_flops,
)
from ovlt.train.footprint import Checkpointing
from ovlt.train.loss import CROSS_ENTROPY
from ovlt.train.pack import collate


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("plan")
    folder = tiny_folder(path, family=request.param, layers=3, vision_depth=3)
    text: Any = folder.config.text_config
    if hasattr(text, "head_dim"):  # of its own, not hidden_size / num_attention_heads
        text.head_dim *= 2
        rotated = text.head_dim * text.rope_parameters.get("partial_rotary_factor", 1) // 2
        part = int(rotated) * 5 // 16
        text.rope_parameters["mrope_section"] = [int(rotated) - 2 * part, part, part]
    return folder


def trainable(folder: ModelFolder, checkpointing: Checkpointing) -> Any:
    model: Any = empty_model(folder.config)
    recompute(model, checkpointing)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(torch.bfloat16)
    fill_buffers(model, torch.device("cpu"))
    model.set_head(logits_dtype=torch.bfloat16)
    return model.train()


def batch_of(folder: ModelFolder, sizes: list[tuple[int, int]], response: int) -> Any:
    sample = random_sample(folder, np.random.default_rng(5), sizes, response)
    return collate([sample], [1.0], config=folder.config, patchify=folder.patchify)


def test_flops_are_those_of_the_real_forward(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's counter. Attention runs as plain products, the whole causal square."""
    monkeypatch.setattr(attention, "available_backends", lambda *_: ("sdpa",))
    model = trainable(folder, checkpointing="none")
    # In chunks, the last of which is filled; the products with a triangle are counted otherwise.
    recurrent = "linear_attention" in (getattr(folder.text_config, "layer_types", None) or ())
    batch = batch_of(folder, [(252, 140)], 211)
    tokens, rows = len(batch.input_ids), len(batch.labels)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model(batch)
    counted = counter.get_flop_counts()
    (tower,) = (sum(v.values()) for k, v in counted.items() if k.endswith(".visual"))
    grid = tuple(batch.grid_thw[0].tolist())
    assert tower == pytest.approx(tower_flops(folder.config, [grid]), rel=0.02)
    # half of the tokens as context of all: the other half of the square
    ours = decoder_flops(folder.config, tokens, tokens // 2) + head_flops(folder.config, rows)
    ours -= mlp_flops(folder.config, tokens - rows)  # the last layer's
    assert counter.get_total_flops() - tower == pytest.approx(ours, rel=0.1 if recurrent else 0.005)


class Alive(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are alive; their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._dropped, key)
        return out

    def _dropped(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def alive(model: Any, batch: Any) -> tuple[int, int]:
    """Bytes after the forward, and the peak of forward and backward."""
    model.zero_grad()
    with Alive() as counter:
        loss = model(batch, CROSS_ENTROPY).loss
        kept = counter.now
        loss.backward()
    return kept, counter.peak


class LikeFla(torch.autograd.Function):
    """Keeps for backward what fla's operations keep, by their source, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, shape: torch.Size, *inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) == 2:  # the convolution
            ctx.save_for_backward(inputs[0])
        else:
            q, k, v, g, beta = inputs
            lengths = (x.new_empty(x.shape[:2], dtype=torch.float32) for x in (q, k))
            system = v.new_empty(*v.shape[:2], 64)
            copies = (x.clone(memory_format=torch.contiguous_format) for x in (q, k, v, g))
            ctx.save_for_backward(*copies, *lengths, beta, system)
        ctx.shapes = [(x.shape, x.dtype) for x in inputs]
        return inputs[-1].new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *(grads[0].new_zeros(s, dtype=d) for s, d in ctx.shapes)


@pytest.fixture
def recurrence_like_fla(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's own operations keep several times as much: the plan is for GPUs."""
    like = LikeFla.apply
    monkeypatch.setattr(qwen3_5, "causal_conv", lambda x, w, _: like(x.shape, x, w))
    monkeypatch.setattr(qwen3_5, "gated_delta", lambda *x: like(x[2].shape, *x[:5]))


@pytest.mark.usefixtures("recurrence_like_fla")
@pytest.mark.parametrize("checkpointing", ["none", "mlp", "full"])
def test_activations_are_those_of_the_real_model(
    folder: ModelFolder, checkpointing: Checkpointing
) -> None:
    """Bytes per token and per patch: differences between a long and a short input."""
    model = trainable(folder, checkpointing)
    short, long = (batch_of(folder, [], response) for response in (601, 1801))
    alive(model, short)  # what is made once
    kept, peak = (
        (b - a) / (len(long.input_ids) - len(short.input_ids))
        for a, b in zip(alive(model, short), alive(model, long), strict=True)
    )
    text = decoder_activations(folder.config, 2)
    hidden_gradient = 2 * folder.config.text_config.hidden_size
    assert kept == pytest.approx(text.kept(checkpointing) + hidden_gradient, rel=0.06)
    if checkpointing == "full":  # else the head is the fullest moment
        expected = text.kept("full") + hidden_gradient + text.recomputed("full")
        assert peak == pytest.approx(expected, rel=0.06)

    small, large = (batch_of(folder, [size], 601) for size in ((560, 560), (1120, 560)))
    tokens = len(large.input_ids) - len(small.input_ids)
    extra = alive(model, large)[0] - alive(model, small)[0] - tokens * kept
    tower = tower_activations(folder.config, 2)
    per_patch = extra / (len(large.patches) - len(small.patches))
    assert per_patch == pytest.approx(tower.kept(checkpointing), rel=0.06)


@pytest.mark.slow
def test_fsdp_holds_what_the_plan_counts(tmp_path: Path, server: Server) -> None:
    """Two ranks: the root group stays gathered; gradients are whole until the last micro-batch."""
    folder = tiny_folder(tmp_path / "model")
    worker = str(WORKERS / "plan_worker.py")
    Command(server, worker, [str(tmp_path)], 2, tmp_path / "log").finish()
    levels = json.loads((tmp_path / "levels.json").read_text())
    p = parameters(folder.config)
    state = levels.pop("state")
    extra = {name: value - state for name, value in levels.items()}
    assert state == pytest.approx(12 * p.total / 2, rel=0.1)  # and the batch
    assert extra["after a forward without backward"] == 2 * p.root
    assert extra["after a micro-batch"] == 4 * p.total
    assert extra["after the last micro-batch"] == 4 * p.total / 2
