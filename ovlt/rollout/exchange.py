"""Groups from every rank to every rank, as bytes: no pickle; and pixels to those that use them.

After ``exchange_groups`` all ranks hold the same groups in the same order, so advantages, packing
and balancing are plain deterministic functions, and every normaliser is known before the first
backward. None of that needs pixels. When it is known which rank trains on what, ``bring_images``
sends each image to the ranks that run the tower over it, and to no other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

import numpy as np

from ovlt.system.collectives import swap_bytes
from ovlt.system.runtime import Runtime
from ovlt.types import Group, Prompt, RankImage, Sample

# The fields that JSON holds as they are; the arrays beside them are written apart. A prompt's
# ``extra`` stays at home: only rewards read it, and each rank grades its own answers.
PROMPT_FIELDS = ("id", "source", "question", "answer", "image_paths")
SAMPLE_FIELDS = (
    "text", "finished", "policy_version", "reward", "reward_parts", "reason",
)  # fmt: skip
SAMPLE_ARRAYS = ("token_ids", "loss_mask", "engine_logp")
# Advantages are computed after the exchange, on every rank alike. A new field must be named above.
NOT_SENT = ("prompt", "advantage")
assert {f.name for f in fields(Sample)} == {*SAMPLE_FIELDS, *SAMPLE_ARRAYS, *NOT_SENT}


class Slot(NamedTuple):
    """Dtype and shape of an array; the bytes of all arrays lie end to end, in this order."""

    dtype: str
    shape: list[int]


def exchange_groups(runtime: Runtime, groups: Sequence[Group]) -> list[Group]:
    """Return the groups of all ranks, rank 0's first. Collective.

    With several ranks their images are ``RankImage``, until ``bring_images``.
    """
    if runtime.world_size == 1:
        return list(groups)
    mine = [_with_images(g, [rank_image(x, runtime.rank) for x in g.prompt.images]) for g in groups]
    everyone = [decode(p, rank) for rank, p in enumerate(runtime.gather_bytes(encode(mine)))]
    everyone[runtime.rank] = mine
    return [group for groups_of_rank in everyone for group in groups_of_rank]


def bring_images(
    runtime: Runtime, groups: Sequence[Group], wanted: Sequence[Collection[int]]
) -> None:
    """Give this rank the pixels of the groups that it uses. Collective.

    Args:
        runtime: of this rank.
        groups: what ``exchange_groups`` returned, or some of it, the same on all ranks.
        wanted: which of them each rank uses, the same on all ranks.
    """
    if runtime.world_size == 1:
        return

    def between(source: int, target: int) -> list[RankImage]:
        images = [x for i in sorted(wanted[target]) for x in _rank_images(groups[i])]
        return [x for x in images if x.rank == source]

    me, ranks = runtime.rank, range(runtime.world_size)
    outgoing = [
        b"".join(x.pixels.tobytes() for x in between(me, r) if x.pixels is not None and r != me)
        for r in ranks
    ]
    sizes = [sum(math.prod(x.shape) for x in between(r, me)) if r != me else 0 for r in ranks]
    incoming = [np.frombuffer(part, np.uint8) for part in swap_bytes(outgoing, sizes)]
    for i in sorted(wanted[me]):  # in the order in which they were sent
        images: list[np.ndarray] = []
        for image in _rank_images(groups[i]):
            pixels = image.pixels
            if pixels is None:
                size, rest = math.prod(image.shape), incoming[image.rank]
                pixels, incoming[image.rank] = rest[:size].reshape(image.shape), rest[size:]
            images.append(pixels)
        _take(groups[i], images)


def rank_image(pixels: np.ndarray, rank: int) -> RankImage:
    """Describe an image that this process holds, as that of ``rank``."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).hexdigest()
    return RankImage(pixels.shape, digest, rank, pixels)


def _rank_images(group: Group) -> Sequence[RankImage]:
    return cast("Sequence[RankImage]", group.prompt.images)


def _with_images(group: Group, images: Sequence[RankImage]) -> Group:
    """Return a copy of a group with other images, around its samples."""
    other = Group(group.prompt, list(group.samples))
    _take(other, images)
    return other


def _take(group: Group, images: Sequence[np.ndarray] | Sequence[RankImage]) -> None:
    """Exchange the images of a group and of its samples."""
    # The types say arrays: only what is between exchange and packing sees anything else.
    group.prompt = replace(group.prompt, images=cast("tuple[np.ndarray, ...]", tuple(images)))
    for sample in group.samples:
        sample.prompt = group.prompt


def encode(groups: Sequence[Group]) -> bytes:
    """Write groups as [8 bytes: length of the JSON head][JSON head][arrays end to end].

    Of an image, a ``RankImage``, the shape and the digest.
    """
    arrays: list[np.ndarray] = []

    def slot(array: np.ndarray) -> Slot:
        arrays.append(np.ascontiguousarray(array))
        return Slot(array.dtype.str, list(array.shape))

    head: list[dict[str, Any]] = []
    for group in groups:
        prompt = {name: getattr(group.prompt, name) for name in PROMPT_FIELDS}
        prompt["token_ids"] = slot(group.prompt.token_ids)
        prompt["images"] = [[x.digest, *x.shape] for x in _rank_images(group)]
        samples = [
            {name: getattr(sample, name) for name in SAMPLE_FIELDS}
            | {name: slot(getattr(sample, name)) for name in SAMPLE_ARRAYS}
            for sample in group.samples
        ]
        head.append({"prompt": prompt, "samples": samples})
    text = json.dumps(head).encode("ascii")
    return b"".join([len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays)])


def decode(payload: bytes, rank: int) -> list[Group]:
    """Read groups of ``rank`` back; the samples of one group share one Prompt."""
    size = int.from_bytes(payload[:8], "little")
    head = json.loads(payload[8 : 8 + size])
    offset = 8 + size

    def array(slot: list[Any]) -> np.ndarray:
        nonlocal offset
        dtype, shape = np.dtype(slot[0]), tuple(slot[1])
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(payload, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
        return values

    groups = []
    for entry in head:
        values = entry["prompt"]
        values["token_ids"] = array(values["token_ids"])  # in the order in which encode wrote them
        values["images"] = tuple(
            RankImage(tuple(shape), digest, rank) for digest, *shape in values["images"]
        )
        values["image_paths"] = tuple(values["image_paths"])
        prompt = Prompt(**values)
        samples = []
        for sample in entry["samples"]:
            arrays = {name: array(sample[name]) for name in SAMPLE_ARRAYS}
            samples.append(Sample(**(sample | arrays | {"prompt": prompt})))
        groups.append(Group(prompt, samples))
    return groups
