"""A uint8 image to the patches that the vision tower reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ovlt_kernels import image as kernels


class ImageProcessor(Protocol):
    """The attributes of transformers' image processor that are read."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    patch_size: int
    merge_size: int
    temporal_patch_size: int


@dataclass(frozen=True)
class Patchify:
    """Scale, normalise and cut an image into the rows that the vision tower takes."""

    mean: tuple[float, float, float]  # of each channel, for pixels in [0, 1]
    std: tuple[float, float, float]
    patch: int = 14  # pixels on a side
    merge: int = 2  # patches on the side of what becomes one token
    temporal: int = 2  # frames of a patch

    @classmethod
    def from_processor(cls, image_processor: ImageProcessor) -> Patchify:
        mean, std = image_processor.image_mean, image_processor.image_std
        return cls(
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            patch=int(image_processor.patch_size),
            merge=int(image_processor.merge_size),
            temporal=int(image_processor.temporal_patch_size),
        )

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (patches, values of each) of an image of this size, in pixels."""
        p = self.patch
        return (height // p) * (width // p), 3 * self.temporal * p * p

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Turn uint8 [h, w, 3] into float32 [patches, 3 * temporal * patch * patch].

        The result is ``out`` if that is given. Patches come in merge x merge blocks; within a row
        the order is channel, time, y, x, and a still image fills every frame of the temporal patch.
        """
        return kernels.patchify(
            image, self.mean, self.std, self.patch, self.merge, self.temporal, out=out
        )
