"""Collating: every token once, every label behind its row, a shared prompt once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import random_sample, tiny_folder

from ovlt.model.load import ModelFolder
from ovlt.train.balance import plan
from ovlt.train.pack import collate, extents, group_numbers, sharing
from ovlt.train.prompts import shared_prompts
from ovlt.types import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("model") / "m")


def test_a_group_stays_together_and_its_image_is_seen_once(folder: ModelFolder) -> None:
    rng = np.random.default_rng(2)
    first, alone = (
        random_sample(folder, rng, sizes, 6) for sizes in ([(84, 56), (28, 28)], [(56, 56)])
    )
    group = []
    for answer in ([5, 6, 7], [8], [9, 10]):
        ids = np.concatenate([first.prompt.token_ids, answer])
        group.append(Sample(first.prompt, ids, np.arange(len(ids)) >= len(first.prompt.token_ids)))
    samples = [*group, alone]
    lengths = extents(samples, folder.config, group_numbers(samples))
    assert len({e.group for e in lengths}) == 2
    prompt = len(first.prompt.token_ids)
    planned = plan(lengths, ranks=2, budget=prompt + 6, config=folder.config)
    assert sorted(sorted(b) for rank in planned.bins for b in rank) == [[0, 1, 2], [3]]

    batch = collate(samples, [1.0] * 4, config=folder.config, patchify=folder.patchify)
    assert batch.grid_thw is not None
    assert sorted(batch.grid_thw.tolist()) == [[1, 2, 2], [1, 4, 4], [1, 6, 4]]
    assert batch.patches is not None
    assert len(batch.patches) == 6 * 4 + 2 * 2 + 4 * 4
    images = [*first.prompt.images, *alone.prompt.images]
    apart = [torch.from_numpy(folder.patchify(image)) for image in images]
    assert torch.equal(batch.patches, torch.cat(apart))
    # One feature row per placeholder, of which the group has one prompt's.
    assert batch.feature_index is not None
    slots = (batch.input_ids == folder.config.image_token_id).sum()
    assert len(batch.feature_index) == slots == 6 + 1 + 4
    assert batch.feature_index.tolist() == list(range(6 + 1 + 4))
    copies = collate(
        samples, [1.0] * 4, config=folder.config, patchify=folder.patchify, groups=range(4)
    )
    assert copies.feature_index is not None
    assert len(copies.feature_index) == 3 * (6 + 1) + 4
    assert copies.patches is not None
    assert torch.equal(copies.patches, batch.patches)  # images are seen once in any case


def sample_of(folder: ModelFolder, ids: list[int], mask: list[int], **more: object) -> Sample:
    prompt = random_sample(folder, np.random.default_rng(0), [], 1).prompt
    logp = np.asarray(mask, dtype=np.float32) * -np.arange(len(ids), dtype=np.float32)
    return Sample(prompt, np.array(ids), np.array(mask, dtype=bool), engine_logp=logp, **more)  # type: ignore[arg-type]


def test_collate_on_a_hand_made_example(folder: ModelFolder) -> None:
    long = sample_of(folder, [11, 12, 13, 14, 15], [0, 0, 1, 0, 1], advantage=0.5)
    short = sample_of(folder, [21, 22, 23], [1, 0, 1], advantage=-2.0)  # token 0 is masked in
    tiny = sample_of(folder, [31], [1])  # nothing can predict its only token
    weights = [0.25, 0.125, 4.0]
    batch = collate([long, short, tiny], weights, config=folder.config, patchify=folder.patchify)
    # Row of each label: the token before it.
    assert batch.input_ids.tolist() == [11, 12, 13, 14, 15, 21, 22, 23, 31]
    assert batch.segments.cu_seqlens.tolist() == [0, 5, 8, 9]
    assert batch.segments.cu_seqlens.dtype == torch.int32
    assert not batch.segments.shared
    assert batch.labels.tolist() == [13, 15, 23]
    assert batch.loss_index.tolist() == [1, 3, 6]
    assert batch.sample_ids.tolist() == [0, 0, 1]
    assert batch.loss_weight.tolist() == [0.25, 0.25, 0.125]
    assert batch.advantage is not None
    assert batch.advantage.tolist() == [0.5, 0.5, -2.0]
    assert batch.engine_logp is not None
    assert batch.engine_logp.tolist() == [-2.0, -4.0, -2.0]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0]] * 3
    assert (batch.num_samples, batch.num_tokens) == (3, 9)
    assert not batch.is_filler


def test_a_shared_prompt_on_a_hand_made_example(folder: ModelFolder) -> None:
    """Two prompts; the first has three responses, one of them empty; the second has one."""
    first = sample_of(folder, [11, 12, 13, 14], [0, 0, 1, 1], advantage=0.5)
    other = sample_of(folder, [21, 22], [0, 1], advantage=1.0)
    second = sample_of(folder, [11, 12, 15], [0, 0, 1], advantage=-1.0)
    empty = sample_of(folder, [11, 12], [0, 0], advantage=-2.0)
    batch = collate(
        [first, other, second, empty], [1.0, 2.0, 3.0, 4.0],
        config=folder.config, patchify=folder.patchify,
    )  # fmt: skip
    # [11 12][13 14][15] [21 22]: the last token of the prompt, 12, predicts both 13 and 15.
    assert batch.input_ids.tolist() == [11, 12, 13, 14, 15, 21, 22]
    assert batch.segments.lengths == [2, 2, 1, 2]
    assert batch.segments.prefix == [-1, 0, 0, -1]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]] * 3
    assert batch.labels.tolist() == [13, 14, 15, 22]
    assert batch.loss_index.tolist() == [1, 2, 1, 5]
    assert batch.sample_ids.tolist() == [0, 0, 1, 3]
    assert batch.loss_weight.tolist() == [1.0, 1.0, 3.0, 2.0]
    assert batch.num_samples == 4
    (lengths,) = {e.prompt for e in extents([first, second, empty], folder.config, [0, 1, 2])}
    assert lengths == 2


def test_prompts_of_the_same_words_are_not_compared_pixel_by_pixel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """300 different images of one question: in pairs that would be 45,000 comparisons."""
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for _ in range(300)]
    shown = [[image] for image in pictures for _ in range(2)] + [[pictures[7].copy()]]
    compared: list[object] = []
    equal = np.array_equal
    monkeypatch.setattr(np, "array_equal", lambda a, b: compared.append(a) or equal(a, b))
    groups = shared_prompts([np.arange(5)] * len(shown), shown)
    assert len(groups) == 300
    assert groups[7] == [14, 15, 600]
    assert len(compared) == 1


def test_what_differs_is_not_shared(folder: ModelFolder) -> None:
    """One token or one pixel of the prompt; whatever Prompt the samples say they answer."""
    rng = np.random.default_rng(1)
    base = random_sample(folder, rng, [(56, 56)], 3)
    twin = replace(base, token_ids=base.token_ids.copy())
    image = base.prompt.images[0].copy()
    same = replace(base, prompt=replace(base.prompt, images=(image.copy(),)))
    image[3, 4, 1] ^= 1
    pixel = replace(base, prompt=replace(base.prompt, images=(image,)))
    token = replace(base, token_ids=base.token_ids.copy())
    token.token_ids[1] += 1
    longer = replace(base, loss_mask=base.loss_mask.copy())
    longer.loss_mask[np.flatnonzero(base.loss_mask)[0]] = False
    assert sharing([base, pixel, twin, token, longer, same]) == [[0, 2, 5], [1], [3], [4]]
    batch = collate([base, same], [1.0, 1.0], config=folder.config, patchify=folder.patchify)
    assert batch.grid_thw is not None
    assert len(batch.grid_thw) == 1  # equal images in two arrays are one


def test_every_label_follows_its_row_inside_one_sample(folder: ModelFolder) -> None:
    rng = np.random.default_rng(4)
    samples = []
    for sizes, response in [([(56, 84)], 7), ([], 1), ([(28, 28)] * 2, 12), ([], 30)]:
        sample = random_sample(folder, rng, sizes, response)
        sample.loss_mask = rng.random(len(sample.token_ids)) < 0.5
        sample.loss_mask[0] = True
        samples.append(sample)
    batch = collate(samples, [1.0] * 4, config=folder.config, patchify=folder.patchify)
    starts = set(batch.segments.starts)
    assert torch.equal(batch.input_ids[batch.loss_index + 1], batch.labels)
    assert not starts & set((batch.loss_index + 1).tolist())  # token 0 is never a label
    assert len(batch.labels) == sum(int(s.loss_mask[1:].sum()) for s in samples)
    ends = batch.segments.cu_seqlens[1:].long()
    assert torch.equal(torch.bucketize(batch.loss_index, ends, right=True), batch.sample_ids)


def test_the_filler_is_small_and_weighs_nothing(folder: ModelFolder) -> None:
    batch = collate([], [], config=folder.config, patchify=folder.patchify)
    assert batch.is_filler
    assert batch.num_tokens == 2
    assert not batch.loss_weight.any()
