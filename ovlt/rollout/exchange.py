"""Groups from every rank to every rank, as bytes: no pickle, one collective pair.

After it, all ranks hold the same groups in the same order, so advantages, packing and balancing are
plain deterministic functions, and every normaliser is known before the first backward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from ovlt.system.runtime import Runtime
from ovlt.types import Group, Prompt, Sample

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
    """Return the groups of all ranks, rank 0's first. Collective."""
    if runtime.world_size == 1:
        return list(groups)
    return [g for payload in runtime.gather_bytes(encode(groups)) for g in decode(payload)]


def encode(groups: Sequence[Group]) -> bytes:
    """Write groups as [8 bytes: length of the JSON head][JSON head][arrays end to end]."""
    arrays: list[np.ndarray] = []

    def slot(array: np.ndarray) -> Slot:
        arrays.append(np.ascontiguousarray(array))
        return Slot(array.dtype.str, list(array.shape))

    head: list[dict[str, Any]] = []
    for group in groups:
        prompt = {name: getattr(group.prompt, name) for name in PROMPT_FIELDS}
        prompt["token_ids"] = slot(group.prompt.token_ids)
        prompt["images"] = [slot(image) for image in group.prompt.images]
        samples = [
            {name: getattr(sample, name) for name in SAMPLE_FIELDS}
            | {name: slot(getattr(sample, name)) for name in SAMPLE_ARRAYS}
            for sample in group.samples
        ]
        head.append({"prompt": prompt, "samples": samples})
    text = json.dumps(head).encode("ascii")
    return b"".join([len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays)])


def decode(payload: bytes) -> list[Group]:
    """Read groups back; the samples of one group share one Prompt and its images."""
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
        values["images"] = tuple(array(slot) for slot in values["images"])
        values["image_paths"] = tuple(values["image_paths"])
        prompt = Prompt(**values)
        samples = []
        for sample in entry["samples"]:
            arrays = {name: array(sample[name]) for name in SAMPLE_ARRAYS}
            samples.append(Sample(**(sample | arrays | {"prompt": prompt})))
        groups.append(Group(prompt, samples))
    return groups
