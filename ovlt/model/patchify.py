"""A uint8 image to the patches that the vision tower reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ovlt_kernels import image as kernels


@dataclass(frozen=True)
class Patchify:
    """Scale, normalise and cut an image into the rows that the vision tower takes."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch: int = 14
    merge: int = 2
    temporal: int = 2

    @classmethod
    def from_processor(cls, image_processor: Any) -> Patchify:
        return cls(
            mean=tuple(image_processor.image_mean),
            std=tuple(image_processor.image_std),
            patch=int(image_processor.patch_size),
            merge=int(image_processor.merge_size),
            temporal=int(image_processor.temporal_patch_size),
        )

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(patches, values of each) of an image of this size."""
        p = self.patch
        return (height // p) * (width // p), 3 * self.temporal * p * p

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 [h,w,3] -> float32 [patches, 3 * temporal * patch * patch], into ``out`` if given.

        Patches come in merge x merge blocks; within a row the order is channel, time, y, x, and a
        still image fills every frame of the temporal patch.
        """
        return kernels.patchify(
            image, self.mean, self.std, self.patch, self.merge, self.temporal, out=out
        )
