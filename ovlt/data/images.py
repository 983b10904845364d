"""One decode and one resize per image: the uint8 array that both engine and trainer are given.

The resamplers of different processors differ by up to 0.36 in a normalised pixel, so an image is
brought here to sides that no processor changes any more (multiples of the merged patch, area
within the limits), and only exact arithmetic follows: scale, normalise, cut into patches.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_ASPECT = 200  # Qwen2-VL's own limit on long side / short side
MAX_DECODE_PIXELS = 200_000_000  # refuse decompression bombs before decoding them
Image.MAX_IMAGE_PIXELS = MAX_DECODE_PIXELS


class BadImage(ValueError):
    """An image that cannot be used; the text is the reason, short enough to be counted by."""


@dataclass(frozen=True)
class ImageRef:
    """Where the bytes of an image are: a file, or a cell of a parquet row."""

    path: str = ""
    data: bytes | None = None

    def open(self) -> Image.Image:
        """The image with its header read, pixels not yet decoded. Raises BadImage."""
        try:
            if self.data is not None:
                if not self.data:
                    raise BadImage("image has zero bytes")
                image = Image.open(io.BytesIO(self.data))
            else:
                if not Path(self.path).is_file():
                    raise BadImage("image file is missing")
                image = Image.open(self.path)
        except BadImage:
            raise
        except Exception as error:  # PIL raises many kinds for hostile bytes
            raise BadImage(f"image cannot be read ({type(error).__name__})") from None
        width, height = image.size
        if width < 1 or height < 1:
            raise BadImage("image has a side of zero pixels")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise BadImage(f"image is more than {MAX_ASPECT} times longer than wide")
        if width * height > MAX_DECODE_PIXELS:
            raise BadImage(f"image has more than {MAX_DECODE_PIXELS:,} pixels")
        return image


def target_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Sides (height, width) that are multiples of ``factor`` with an area within the limits.

    The rule of Qwen2-VL's processor: round both sides; if the area is out of bounds, scale both by
    the same number and round inwards. Applying it to its own result changes nothing.
    """
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if h * w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / scale / factor) * factor)
        w = max(factor, math.floor(width / scale / factor) * factor)
    elif h * w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * scale / factor) * factor
        w = math.ceil(width * scale / factor) * factor
    return h, w


def load_image(ref: ImageRef, *, factor: int, min_pixels: int, max_pixels: int) -> np.ndarray:
    """Decode, flatten onto white, resize (bicubic) -> uint8 [height, width, 3]. Raises BadImage."""
    image = ref.open()
    try:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.new("RGB", rgba.size, (255, 255, 255))
            image.paste(rgba, mask=rgba.getchannel("A"))
        rgb = image.convert("RGB")
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"image cannot be decoded ({type(error).__name__})") from None
    height, width = target_size(
        rgb.height, rgb.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    if (rgb.width, rgb.height) != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


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

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h,w,3] -> float32 [patches, 3 * temporal * patch * patch].

        Patches come in merge x merge blocks; within a row the order is channel, time, y, x, and a
        still image fills every frame of the temporal patch.
        """
        h, w, _ = image.shape
        p, m = self.patch, self.merge
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        shift = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        x = image.astype(np.float32) * scale - shift
        x = x.reshape(h // (p * m), m, p, w // (p * m), m, p, 3)
        x = x.transpose(0, 3, 1, 4, 6, 2, 5)  # block row, block column, m, m, channel, y, x
        out = np.empty((*x.shape[:5], self.temporal, p, p), dtype=np.float32)
        out[...] = x[:, :, :, :, :, None]
        return out.reshape((h // p) * (w // p), -1)
