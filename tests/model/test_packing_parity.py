"""Packed log-probs and gradients equal the one-by-one Hugging Face forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import random_sample, tiny_folder

from ovlt.model import sizes as model_sizes
from ovlt.model.families import NAMES
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel, empty_model, fill_buffers, vision_plan
from ovlt.model.positions import mrope_positions
from ovlt.model.weights import read_weights
from ovlt.train.pack import collate, sharing
from ovlt.types import Sample

SIZES = [[(84, 84)], [], [(56, 140), (196, 112)], [(28, 28)], [], [(252, 140), (84, 84), (56, 56)]]
RESPONSES = [5, 7, 1, 13, 3, 8]
# Largest error of float32 gradients; a recurrence loses a digit (tests/model/test_qwen3_5.py
# has them in float64).
GRADIENTS = {"qwen3_5": 1e-4}


def plain_model(folder: ModelFolder) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        folder.path, attn_implementation="eager", dtype=torch.float32
    )


def packed_model(folder: ModelFolder, temperature: float = 1.0) -> PackedModel:
    model = empty_model(folder.config)
    model.to_empty(device="cpu")
    model.tie_weights()
    fill_buffers(model, torch.device("cpu"))
    read_weights(model, folder.path)
    model.set_head(temperature=temperature, banned=folder.banned)
    return model


def one_by_one(model: Any, folder: ModelFolder, sample: Sample, temperature: float) -> torch.Tensor:
    """Hugging Face's own processor output and forward for one sample -> logp of the response."""
    ids = torch.from_numpy(sample.token_ids)[None]
    kwargs: dict[str, Any] = {}
    if sample.prompt.images:
        from transformers import AutoImageProcessor

        features = AutoImageProcessor.from_pretrained(folder.path)(
            images=list(sample.prompt.images), return_tensors="pt", do_resize=False
        )
        kwargs = {k: features[k] for k in ("pixel_values", "image_grid_thw")}
    model.model.rope_deltas = None
    types = (ids == folder.config.image_token_id).int()
    logits = model(input_ids=ids, mm_token_type_ids=types, use_cache=False, **kwargs).logits[0]
    logits = logits.double() / temperature
    logits[:, list(folder.banned)] = -torch.inf
    logp = torch.log_softmax(logits, -1)
    rows = np.flatnonzero(sample.loss_mask)
    return logp[rows - 1, ids[0, rows]]


@pytest.fixture(scope="module", params=[(f, t) for f in NAMES for t in (False, True)], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    family, tied = request.param
    path = tmp_path_factory.mktemp("model") / "m"
    return tiny_folder(path, family=family, tied=tied, layers=3, vision_depth=3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_equals_one_by_one(folder: ModelFolder, temperature: float) -> None:
    rng = np.random.default_rng(5)
    samples = [random_sample(folder, rng, s, r) for s, r in zip(SIZES, RESPONSES, strict=True)]
    # two answers to one prompt share its images, and the tower's features for them
    shared = samples[2]
    twin_ids = np.concatenate([shared.prompt.token_ids, shared.token_ids[-1:], [17, 23]])
    twin = Sample(shared.prompt, twin_ids, np.arange(len(twin_ids)) >= len(shared.prompt.token_ids))
    samples.append(twin)
    # an answer without tokens; and two conversations whose second image is in a later turn
    samples.append(
        replace(shared, token_ids=shared.prompt.token_ids, loss_mask=twin.loss_mask[:-3])
    )
    turns = random_sample(folder, rng, [(84, 56), (56, 56)], 6)
    between = np.flatnonzero(turns.token_ids == folder.config.image_token_id)[5] + 2
    turns = Sample(
        turns.prompt,
        np.insert(turns.token_ids, between, [17, 18]),
        np.insert(turns.loss_mask, between, [False, True]),
    )
    other = replace(turns, token_ids=turns.token_ids.copy())
    other.token_ids[-3:] = [5, 6, 7]
    samples += [turns, other]
    assert sharing(samples) == [[0], [1], [2, 6, 7], [3], [4], [5], [8, 9]]
    samples = [samples[i] for group in sharing(samples) for i in group]  # as they are packed
    weights = [float(w) for w in rng.normal(size=len(samples))]
    packed, plain = packed_model(folder, temperature), plain_model(folder)
    batch = collate(samples, weights, config=folder.config, patchify=folder.patchify)
    assert batch.grid_thw is not None
    assert len(batch.grid_thw) == 9  # those of a prompt are not seen twice
    assert batch.segments.prefix.count(-1) == 7

    head = packed(batch)
    expected = torch.cat([one_by_one(plain, folder, s, temperature) for s in samples])
    assert (head.logp - expected).abs().max() < 1e-5

    (head.logp * batch.loss_weight).sum().backward()
    lengths = [s.num_response_tokens for s in samples]
    (
        expected * torch.repeat_interleave(torch.tensor(weights), torch.tensor(lengths))
    ).sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in packed.named_parameters():
        scale = theirs[name].grad.abs().max().clamp(min=1.0)
        difference = (parameter.grad - theirs[name].grad).abs().max()
        assert difference <= GRADIENTS.get(folder.config.model_type, 1e-5) * scale, name


def test_image_free_batch_runs_the_tower_and_gives_it_zero_gradient(folder: ModelFolder) -> None:
    rng = np.random.default_rng(6)
    samples = [random_sample(folder, rng, [], 4)]
    model = packed_model(folder)
    batch = collate(samples, [1.0], config=folder.config, patchify=folder.patchify)
    model(batch).logp.sum().backward()
    grads = [p.grad for p in model.model.visual.parameters()]
    assert all(g is not None and not g.any() for g in grads)


def test_filler_runs_and_weighs_nothing(folder: ModelFolder) -> None:
    model = packed_model(folder)
    batch = collate([], [], config=folder.config, patchify=folder.patchify)
    (model(batch).logp * batch.loss_weight).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_positions_equal_transformers(folder: ModelFolder) -> None:
    rng = np.random.default_rng(7)
    plain = plain_model(folder)
    for sizes, response in zip(SIZES, RESPONSES, strict=True):
        sample = random_sample(folder, rng, sizes, response)
        ids = torch.from_numpy(sample.token_ids)[None]
        images = sample.prompt.images
        grids = [model_sizes.image_grid(folder.config, *image.shape[:2]) for image in images]
        expected, _ = plain.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == folder.config.image_token_id).int(),
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        ours = mrope_positions(sample.token_ids, grids, folder.config)
        assert (torch.from_numpy(ours) == expected[:, 0]).all()


def test_the_plan_of_the_tower_is_what_transformers_computes(folder: ModelFolder) -> None:
    """Images smaller and larger than a table of positions, a single token, windows cut off."""
    plain: Any = plain_model(folder)
    grids = [(1, 6, 6), (1, 2, 2), (1, 4, 10), (1, 18, 22), (1, 2, 26)]
    config = folder.config
    patches = torch.randn(sum(h * w for _, h, w in grids), model_sizes.patch_values(config))
    plan = vision_plan(grids, config)
    with torch.no_grad():
        theirs = plain.model.visual(patches, grid_thw=torch.tensor(grids)).pooler_output
        ours = plain.model.visual(patches, grid_thw=torch.tensor(grids), **plan.keywords)
    assert torch.equal(ours.pooler_output, theirs)


def test_a_cut_image_is_refused(folder: ModelFolder) -> None:
    rng = np.random.default_rng(8)
    sample = random_sample(folder, rng, [(84, 84)], 2)
    where = np.flatnonzero(sample.token_ids == folder.config.image_token_id)
    with pytest.raises(ValueError, match="placeholder"):
        mrope_positions(np.delete(sample.token_ids, where[3]), [(1, 6, 6)], folder.config)
