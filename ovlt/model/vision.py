"""Plans of the vision tower: where patches lie, and which of them attend to each other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovlt.model.segments import to_device
from ovlt.model.sizes import Grid


@dataclass(frozen=True)
class VisionPlan:
    """Keyword arguments of a transformers tower, made on the CPU.

    The tower would otherwise compute them in each forward, with Python loops that wait for the
    device.
    """

    keywords: Mapping[str, Tensor | int]

    def to(self, device: torch.device | str) -> VisionPlan:
        """The same plan with every tensor on ``device``."""
        return VisionPlan(
            {
                name: to_device(value, device) if isinstance(value, Tensor) else value
                for name, value in self.keywords.items()
            }
        )


class LinearPatchEmbed(nn.Module):
    """The patch embedding as one matrix product: its Conv3d has a stride equal to its kernel.

    The parameters keep the names and shapes of the convolution's.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Patches [P, channels * temporal * patch * patch] -> [P, tower width]."""
        weight = self.proj.weight
        return F.linear(
            hidden_states.to(weight.dtype), weight.view(weight.shape[0], -1), self.proj.bias
        )


def frame_lengths(grids: Sequence[Grid]) -> list[int]:
    """Return the patches of each frame of each image: they see each other."""
    return [grid[1] * grid[2] for grid in grids for _ in range(grid[0])]


@functools.lru_cache(maxsize=4096)  # datasets repeat sizes; 16 KB per 1,000 patches
def patch_positions(grid: Grid, merge: int) -> np.ndarray:
    """Return row and column of each patch of an image, int64 [P, 2].

    Patches come in blocks of merge x merge, as the image processor lays them out.
    """
    t, h, w = grid
    blocks = (h // merge, merge, w // merge, merge)
    positions = np.stack(
        [x.reshape(blocks).transpose(0, 2, 1, 3).ravel() for x in np.indices((h, w))], axis=-1
    )
    return np.tile(positions, (t, 1))
