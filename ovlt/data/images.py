"""Decode and resize each image once: engine and trainer are given the same uint8 array.

The resamplers of different processors differ by up to 0.36 in a normalised pixel, so an image is
brought here to sides that no processor changes any more (multiples of the merged patch, area
within the limits), and only exact arithmetic follows: scale, normalise, cut into patches.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from ovlt_kernels import image as kernels

MAX_ASPECT = 200  # Qwen2-VL's own limit on long side / short side
MAX_DECODE_PIXELS = 200_000_000  # refuse decompression bombs before decoding them
Image.MAX_IMAGE_PIXELS = MAX_DECODE_PIXELS
TOO_LARGE = f"image has more than {MAX_DECODE_PIXELS:,} pixels"
# The formats that datasets hold. Pillow knows more, and starts programs for some (EPS:
# Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # JPEG opens MPO too
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


class BadImage(ValueError):
    """An image that cannot be used: a reason short enough to count by, and ``detail`` of this one.

    The detail is the path that was tried, or where the image would be.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True)
class PixelLimits:
    """The sizes to which images are brought."""

    factor: int  # both sides become multiples of this many pixels
    min_pixels: int  # height x width
    max_pixels: int


class StoredImage(TypedDict):
    """An image as files of rows hold it: the encoded bytes, and a file name."""

    bytes: bytes
    path: str


@dataclass(frozen=True)
class ImageRef:
    """Where the encoded bytes of an image are.

    In a file at ``path``; or in ``data``; or, if a row holds them, in the row, which ``again``
    reads once more. Then ``path`` is the name that the row gives.
    """

    path: str = ""
    data: bytes | None = None
    again: Callable[[], bytes] | None = None

    @property
    def in_file(self) -> bool:
        """Whether the image is a file of its own."""
        return self.data is None and self.again is None

    def read(self) -> bytes:
        """Return the encoded bytes. Raises BadImage."""
        if self.data is not None:
            return self.data
        if self.again is not None:
            return self.again()
        with _explained(self.path):
            if not Path(self.path).is_file():
                raise BadImage("image file is missing", self.path)
            return Path(self.path).read_bytes()

    def open(self) -> Image.Image:
        """Return the image with its header read and its pixels not decoded. Raises BadImage."""
        data = None if self.in_file else self.read()
        with _explained(self.path):
            source = self.path if data is None else io.BytesIO(data)
            if isinstance(source, str) and not Path(source).is_file():
                raise BadImage(_why_missing(source), source)
            size = (
                Path(source).stat().st_size if isinstance(source, str) else len(source.getbuffer())
            )
            if not size:
                raise BadImage("image has zero bytes", self.path)
            image = Image.open(source, formats=FORMATS)
        width, height = image.size
        reason = ""
        if width < 1 or height < 1:
            reason = "image has a side of zero pixels"
        elif max(width, height) > MAX_ASPECT * min(width, height):
            reason = f"one side of the image is more than {MAX_ASPECT} times the other"
        elif width * height > MAX_DECODE_PIXELS:
            reason = TOO_LARGE
        if reason:
            image.close()
            raise BadImage(reason, self.path)
        return image


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what Pillow and the file system raise into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(TOO_LARGE, path) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise BadImage("image file is missing", f"{path[:80]}...") from None
        raise BadImage(f"image cannot be read ({type(error).__name__})", path) from None
    except Exception as error:  # PIL raises many kinds for hostile bytes
        raise BadImage(f"image cannot be read ({type(error).__name__})", path) from None


def _why_missing(path: str) -> str:
    return "image is a folder, not a file" if Path(path).is_dir() else "image file is missing"


def stored(ref: ImageRef, name: str) -> StoredImage:
    """Return the image as a file of rows holds it. Raises BadImage.

    Its bytes are copied, not encoded anew, so that it keeps its pixels and its EXIF orientation;
    ``path`` is ``name`` with the suffix of its format.
    """
    with ref.open() as header:
        format = str(header.format)
    suffix = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(format, format.lower())
    return {"bytes": ref.read(), "path": f"{name}.{suffix}"}


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
