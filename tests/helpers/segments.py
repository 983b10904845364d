"""Segments of packed rows for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ovlt.model.segments import Segments


def segments_of_groups(
    groups: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu"
) -> Segments:
    """Return the segments of [prompt, responses] groups; a group of one has no responses."""
    lengths: list[int] = []
    prefix: list[int] = []
    for prompt, responses in groups:
        prefix += [-1, *[len(lengths)] * len(responses)]
        lengths += [prompt, *responses]
    return Segments(lengths, prefix, device)
