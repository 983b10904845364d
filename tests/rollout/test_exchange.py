"""Groups between ranks: nothing changes on the way. (Their order: test_stage.py.)"""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers.tiny import random_sample, tiny_folder

from ovlt.rollout.exchange import decode, encode, rank_image
from ovlt.train.pack import collate
from ovlt.types import Group, Prompt, RankImage, Sample

HOSTILE = [
    "a\ud800b\udfff",  # lone surrogates: no UTF-8 of its own
    "nul \x00 and \x1b[2J and \u2028",
    '"],[{"',
    "",
    "\U0001f600 <|im_end|>",
]


def make_group(rng: np.random.Generator, text: str, sizes: list[tuple[int, int]]) -> Group:
    length = int(rng.integers(1, 6))
    prompt = Prompt(
        id=text,
        source=text,
        question=text,
        answer=text,
        token_ids=rng.integers(0, 1 << 40, length),
        images=tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes),
        image_paths=(text,) * len(sizes),
    )
    samples = []
    for i in range(int(rng.integers(1, 4))):
        total = length + int(rng.integers(0, 7))
        samples.append(
            Sample(
                prompt=prompt,
                token_ids=rng.integers(0, 1 << 40, total),
                loss_mask=rng.random(total) < 0.5,
                engine_logp=rng.normal(size=total).astype(np.float32),
                text=text,
                finished=bool(i % 2),
                policy_version=i,
                reward=float(rng.normal()),
                reward_parts={text: 0.1 + i, "accuracy": 1.0},
                reason=text,
            )
        )
    return Group(prompt, samples)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (Prompt, Sample, Group)):  # not RankImage: equal by its digest
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and a == b


def test_groups_come_back_as_they_were() -> None:
    rng = np.random.default_rng(1)
    sizes = [[], [(28, 28)], [(3, 5), (28, 56), (1, 1)], [], [(7, 9)]]
    groups = [make_group(rng, t, s) for t, s in zip(HOSTILE, sizes, strict=True)]
    groups.append(Group(groups[0].prompt, []))
    groups = described(groups)
    back = decode(encode(groups), rank=3)
    assert same(groups, back)
    images = [image for group in back for image in group.prompt.images]
    assert all(isinstance(x, RankImage) and x.rank == 3 and x.pixels is None for x in images)
    for group in back:  # one Prompt per group: the packer shares images by identity
        assert all(sample.prompt is group.prompt for sample in group.samples)


def described(groups: list[Group]) -> list[Group]:
    """The groups as the exchange sends them: of an image, its shape and digest."""
    for group in groups:
        images: Any = tuple(rank_image(image, 0) for image in group.prompt.images)
        group.prompt = replace(group.prompt, images=images)
        for sample in group.samples:
            sample.prompt = group.prompt
    return groups


def test_no_groups_at_all() -> None:
    assert decode(encode([]), 0) == []


def test_images_are_equal_if_their_pixels_are() -> None:
    pixels = np.arange(28 * 56 * 3, dtype=np.uint8).reshape(28, 56, 3)
    other = pixels.copy()
    other[-1, -1, -1] += 1
    turned = np.ascontiguousarray(pixels.reshape(56, 28, 3))
    mine, same_one = rank_image(pixels, 0), rank_image(pixels[:, ::-1][:, ::-1], 1)
    assert mine == same_one
    assert hash(mine) == hash(same_one)
    assert len({mine, rank_image(other, 0), rank_image(turned, 0)}) == 3


def test_decoded_groups_are_packed_like_the_originals(tmp_path: Path) -> None:
    """What ``decode`` gives is read-only and lies at odd addresses; collate must not mind."""
    folder = tiny_folder(tmp_path / "m")
    rng = np.random.default_rng(2)
    samples = [random_sample(folder, rng, sizes, 3) for sizes in ([(28, 84)], [], [(56, 28)])]
    for sample in samples:
        sample.engine_logp = rng.normal(size=len(sample.token_ids)).astype(np.float32)
    groups = described([Group(s.prompt, [replace(s)]) for s in samples])
    back = [s for g in decode(encode(groups), 0) for s in g.samples]
    for sample, original in zip(back, samples, strict=True):
        sample.prompt = replace(sample.prompt, images=original.prompt.images)
    how: dict[str, Any] = {"config": folder.config, "patchify": folder.patchify}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = collate(back, [1.0] * 3, **how)
    want = collate(samples, [1.0] * 3, **how)
    for name in ("input_ids", "patches", "labels", "engine_logp", "feature_index"):
        assert (getattr(got, name) == getattr(want, name)).all(), name
