"""Qwen3.5 packed equals Hugging Face one by one; nothing passes from one sample to another."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import random_sample, tiny_folder
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from ovlt.model import delta_fla
from ovlt.model.batch import PackedBatch
from ovlt.model.families import qwen3_5
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel, empty_model, fill_buffers
from ovlt.model.segments import Segments
from ovlt.model.sizes import image_grid
from ovlt.model.weights import read_weights
from ovlt.train.pack import collate
from ovlt.types import Sample

SIZES = [[(64, 96)], [], [(32, 128), (96, 160)], [], [(32, 32)]]
RESPONSES = [5, 7, 70, 1, 3]


def unsettle(folder: Path) -> None:
    """Move weights away from 0 and 1, where a fault could hide, and let half of the heads remember.

    A state that forgets within a few tokens leaks little.
    """
    file = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(3)
    weights = load_file(file)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
        if name.endswith("A_log"):
            tensor[::2] = -4.0
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("model") / "m"
    folder = tiny_folder(path, family="qwen3_5", layers=3)
    unsettle(path)
    return folder


@pytest.fixture(scope="module")
def samples(folder: ModelFolder) -> list[Sample]:
    """Three answers to one prompt with an image, one of them long; others alone."""
    rng = np.random.default_rng(5)
    samples = [random_sample(folder, rng, s, r) for s, r in zip(SIZES, RESPONSES, strict=True)]
    first = samples[0]
    prompt = len(first.prompt.token_ids)
    for length in (66, 2):
        ids = np.concatenate([first.token_ids[:prompt], rng.integers(5, 200, length)])
        samples.insert(1, replace(first, token_ids=ids, loss_mask=np.arange(len(ids)) >= prompt))
    return samples


def packed_model(folder: ModelFolder) -> PackedModel:
    model = empty_model(folder.config)
    model.to_empty(device="cpu")
    model.tie_weights()
    fill_buffers(model, torch.device("cpu"))
    read_weights(model, folder.path)
    model.set_head(banned=folder.banned)
    return model


def plain_model(folder: ModelFolder) -> Any:
    return theirs.Qwen3_5ForConditionalGeneration.from_pretrained(
        folder.path, attn_implementation="eager", dtype=torch.float32
    )


def images_of(folder: ModelFolder, sample: Sample) -> dict[str, Tensor]:
    if not sample.prompt.images:
        return {}
    assert folder.patchify is not None
    patches = np.concatenate([folder.patchify(image) for image in sample.prompt.images])
    grids = [image_grid(folder.config, *image.shape[:2]) for image in sample.prompt.images]
    return {"pixel_values": torch.from_numpy(patches), "image_grid_thw": torch.tensor(grids)}


def one_by_one(
    model: Any, folder: ModelFolder, sample: Sample, images: dict[str, Tensor]
) -> Tensor:
    ids = torch.from_numpy(sample.token_ids)[None]
    model.model.rope_deltas = None
    kinds = (ids == folder.config.image_token_id).int()
    logits = model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **images).logits[0]
    logits = logits.double()
    logits[:, list(folder.banned)] = -torch.inf
    logp = torch.log_softmax(logits, -1)
    rows = np.flatnonzero(sample.loss_mask)
    return logp[rows - 1, ids[0, rows]]


class _Wide:
    """torch, with float64 where a file says float32."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64() -> Iterator[None]:
    """Let transformers' file compute in float64 what it computes in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "torch", _Wide())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def batch_of(folder: ModelFolder, samples: list[Sample], *, share: bool = True) -> PackedBatch:
    batch = collate(
        samples,
        [1.0] * len(samples),
        config=folder.config,
        patchify=folder.patchify,
        groups=None if share else range(len(samples)),
    )
    assert batch.segments.shared == share
    return batch


def gradients(model: Any, logp: Tensor) -> dict[str, Tensor]:
    """Those of the sum of all log-probs with odd weights."""
    model.zero_grad()
    odd = torch.randn(len(logp), generator=torch.Generator().manual_seed(1)).to(logp.dtype)
    (logp * odd).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_packed_with_shared_prompts_equals_one_by_one(
    folder: ModelFolder, samples: list[Sample], dtype: torch.dtype
) -> None:
    packed, plain = packed_model(folder).to(dtype), plain_model(folder).to(dtype)
    batch, images = batch_of(folder, samples), [images_of(folder, sample) for sample in samples]
    wide = dtype == torch.float64
    with in_float64() if wide else nullcontext():
        logp = packed(batch).logp
        pairs = zip(samples, images, strict=True)
        expected = torch.cat([one_by_one(plain, folder, *pair) for pair in pairs])
        got, want = gradients(packed, logp), gradients(plain, expected)
    assert (logp - expected).abs().max() < (1e-12 if wide else 1e-5)
    assert set(got) == set(want)
    for name, gradient in got.items():
        largest = float(want[name].abs().max())
        assert largest > 0, name
        assert (gradient - want[name]).abs().max() <= (1e-12 if wide else 1e-4) * largest, name


def test_shared_prompts_are_copies(folder: ModelFolder, samples: list[Sample]) -> None:
    model = packed_model(folder)
    shared = model(batch_of(folder, samples)).logp
    copies = model(batch_of(folder, samples, share=False)).logp
    assert (shared - copies).abs().max() < 1e-5
    got, want = gradients(model, shared), gradients(model, copies)
    for name, gradient in got.items():
        assert (gradient - want[name]).abs().max() <= 1e-4 * want[name].abs().max(), name


def test_a_sample_does_not_reach_another(folder: ModelFolder, samples: list[Sample]) -> None:
    """Bitwise, whatever stands before it; transformers' own forward fails, and so does half."""
    model = packed_model(folder)
    batch = batch_of(folder, samples)
    others = torch.isin(batch.sample_ids, torch.tensor([0, 1, 2]), invert=True)
    odd = replace(samples[2], token_ids=samples[2].token_ids.copy())
    odd.token_ids[-1] = 17  # the last token before the samples that share nothing with it
    changed = batch_of(folder, [*samples[:2], odd, *samples[3:]])

    def leak() -> float:
        """How far the change reaches into samples that do not hold it."""
        with torch.no_grad():
            before, after = model(batch).logp, model(changed).logp
        return float((before - after)[others].abs().max())

    assert leak() == 0

    def whole(segments: Segments) -> Segments:
        return Segments([segments.total])

    layers = model.model.language_model.layers
    recurrent = [layer.linear_attn for layer in layers if hasattr(layer, "linear_attn")]
    assert len(recurrent) == 2
    for name in ("causal_conv", "gated_delta"):  # one of the two without boundaries
        kept = getattr(qwen3_5, name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(qwen3_5, name, lambda *x, f=kept: f(*x[:-1], whole(x[-1])))
            assert leak() > 1e-3, name
    stock = theirs.Qwen3_5GatedDeltaNet.forward

    def packed_by_transformers(self: Any, hidden_states: Tensor, **keywords: Any) -> Tensor:
        """With the keywords that are meant for it; its plain functions drop them."""
        segments = keywords["ovlt_segments"]
        owner = torch.repeat_interleave(
            torch.arange(len(segments.lengths)), torch.tensor(segments.lengths)
        )
        return stock(
            self, hidden_states, cu_seq_lens_q=segments.cu_seqlens, seq_idx=owner[None].int()
        )

    for module in recurrent:
        module.forward = types.MethodType(packed_by_transformers, module)
    assert leak() > 1e-3


def test_a_row_without_boundaries_is_refused(folder: ModelFolder) -> None:
    layer = packed_model(folder).model.language_model.layers[0].linear_attn
    with pytest.raises(RuntimeError, match="without segment boundaries"):
        layer(torch.zeros(1, 3, 64))


def test_a_device_or_a_transformers_that_cannot_keep_samples_apart_is_refused(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_fla, "obstacle", lambda *_: "fla-core is not installed: pip install")
    model = empty_model(folder.config)
    model.check_device(torch.device("cpu"))
    with pytest.raises(ValueError, match="not installed: pip install"):
        model.check_device(torch.device("cuda"))
    monkeypatch.setattr(qwen3_5, "PARTS", qwen3_5.PARTS - {"dt_bias"})
    with pytest.raises(ValueError, match=r"differ in \['dt_bias'\].*requirements/common.txt"):
        empty_model(folder.config)


def test_transformers_own_functions_are_plain_on_a_cpu() -> None:
    """They are a GPU's once fla is installed; the transformers engine runs on a CPU too."""
    calls: list[str] = []

    def plain(x: Tensor) -> None:
        calls.append("plain")

    @functools.wraps(plain)
    def kernel(x: Tensor) -> None:
        calls.append("kernel")

    qwen3_5.by_device(kernel)(torch.zeros(1))
    assert calls == ["plain"]
    assert hasattr(theirs.causal_conv1d_fn, "__wrapped__")
