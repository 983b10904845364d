"""Decode and resize each image once: engine and trainer are given the same uint8 array.

The resamplers of different processors differ by up to 0.36 in a normalised pixel, so an image is
brought here to sides that no processor changes any more (multiples of the merged patch, area
within the limits), and only exact arithmetic follows: scale, normalise, cut into patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ovlt.data.image_refs import BadImage, ImageRef
from ovlt_kernels import image as kernels

ORIENTATION = 0x0112  # EXIF tag: how the camera was held
TURNS = {  # EXIF orientation -> what sets the image upright; 1 needs nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class PixelLimits:
    """The sizes to which images are brought."""

    factor: int  # both sides become multiples of this many pixels
    min_pixels: int  # height x width
    max_pixels: int


def upright(image: Image.Image) -> tuple[int, int, Image.Transpose | None]:
    """Return (height, width, turn) of an opened image, the sides after ``turn`` set it upright.

    A camera's EXIF orientation is obeyed, as transformers' and vLLM's own loaders do: the author of
    the question saw the picture upright. It is read from the header alone, both for the grid of a
    row and for its pixels, so the two cannot disagree. Pillow turns TIFF files itself.
    """
    turn = None
    if "exif" in image.info and image.format != "TIFF":
        try:
            turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        except Exception:  # a broken EXIF block says nothing about the pixels
            turn = None
    width, height = image.size
    if turn is not None and turn.name not in ("FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "ROTATE_180"):
        return width, height, turn
    return height, width, turn


def target_size(height: int, width: int, limits: PixelLimits) -> tuple[int, int]:
    """Return sides (height, width) that are multiples of the factor, with an area within bounds.

    The rule of Qwen2-VL's processor: round both sides; if the area is out of bounds, scale both by
    the same number and round inwards. That rule breaks its own limit if a short side would
    vanish; then the long side is cut, so that applying the rule again changes nothing (given
    max_pixels >= 4 min_pixels; a narrower range may hold no such size).
    """
    factor, min_pixels, max_pixels = limits.factor, limits.min_pixels, limits.max_pixels
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / scale / factor) * factor)
        w = max(factor, math.floor(width / scale / factor) * factor)
    elif h * w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * scale / factor) * factor
        w = math.ceil(width * scale / factor) * factor
    if h * w > max_pixels:
        short = min(h, w)
        long = max(factor, max_pixels // short // factor * factor)
        h, w = (short, long) if h < w else (long, short)
    return h, w


def load_image(ref: ImageRef, limits: PixelLimits) -> np.ndarray:
    """Decode, set upright, flatten onto white and resize (bicubic) -> uint8 [height, width, 3].

    Several threads call this at once, so each resize runs on one thread. Raises BadImage.
    """
    with ref.open() as image:
        height, width, turn = upright(image)
        size = target_size(height, width, limits)
        try:
            rgb = _flat(image)
            if turn is not None:
                rgb = rgb.transpose(turn)
            if (rgb.height, rgb.width) != (height, width):
                raise BadImage("image has another size than its header says", ref.path)
            pixels = np.asarray(rgb)
        except BadImage:
            raise
        except Exception as error:
            reason = f"image cannot be decoded ({type(error).__name__})"
            raise BadImage(reason, ref.path) from None
    return pixels if (height, width) == size else kernels.resize(pixels, *size, parallel=False)


def _flat(image: Image.Image) -> Image.Image:
    """Return the image in RGB, whatever its mode; transparent places become white, as on paper."""
    if image.mode in ("I", "F") and (image.format, image.mode) != ("PPM", "I"):
        raise BadImage("image has 32-bit pixels, whose white is unknown")
    # Pillow calls a PGM of 16 bits "I", and has scaled its values to 0..65535.
    if image.mode == "I" or image.mode.startswith(
        "I;16"
    ):  # Pillow clips these at 255 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
