"""Groups from every rank to every rank, as bytes: no pickle, one collective pair.

After it, all ranks hold the same groups in the same order, so advantages, packing and balancing are
plain deterministic functions, and every normaliser is known before the first backward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovlt.system.runtime import Runtime
from ovlt.types import Group, Prompt, Sample


def exchange_groups(runtime: Runtime, groups: Sequence[Group]) -> list[Group]:
    """All ranks' groups, rank 0's first. With one rank: the same groups."""
    if runtime.world_size == 1:
        return list(groups)
    return [g for payload in runtime.gather_bytes(encode(groups)) for g in decode(payload)]


def encode(groups: Sequence[Group]) -> bytes:
    """Groups as [8 bytes: length of the JSON head][JSON head][arrays end to end]."""
    arrays: list[np.ndarray] = []

    def put(array: np.ndarray) -> list[Any]:
        arrays.append(np.ascontiguousarray(array))
        return [array.dtype.str, list(array.shape)]

    head = []
    for group in groups:
        p = group.prompt
        prompt = [p.id, p.source, p.question, p.answer, list(p.image_paths)]
        prompt += [put(p.token_ids), [put(image) for image in p.images]]
        samples = []
        for s in group.samples:
            assert s.engine_logp is not None
            samples.append(
                [
                    put(s.token_ids),
                    put(s.loss_mask),
                    put(s.engine_logp),
                    s.text,
                    s.finished,
                    s.policy_version,
                    s.reward,
                    s.reward_parts,
                    s.reason,
                ]
            )
        head.append([prompt, samples])
    text = json.dumps(head).encode("ascii")
    return b"".join([len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays)])


def decode(payload: bytes) -> list[Group]:
    """The inverse of ``encode``; samples of one group share one Prompt and its images."""
    size = int.from_bytes(payload[:8], "little")
    head = json.loads(payload[8 : 8 + size])
    offset = 8 + size

    def take(spec: list[Any]) -> np.ndarray:
        nonlocal offset
        dtype, shape = np.dtype(spec[0]), tuple(spec[1])
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(payload, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
        return array

    groups = []
    for (id_, source, question, answer, paths, ids, images), rows in head:
        prompt = Prompt(
            id_, source, question, answer, take(ids), tuple(take(i) for i in images), tuple(paths)
        )
        samples = []
        for token_ids, mask, logp, text, finished, version, reward, parts, reason in rows:
            samples.append(
                Sample(
                    prompt=prompt,
                    token_ids=take(token_ids),
                    loss_mask=take(mask),
                    engine_logp=take(logp),
                    text=text,
                    finished=finished,
                    policy_version=version,
                    reward=reward,
                    reward_parts=parts,
                    reason=reason,
                )
            )
        groups.append(Group(prompt, samples))
    return groups
