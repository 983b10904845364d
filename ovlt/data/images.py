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

from ovlt_kernels import image as kernels

MAX_ASPECT = 200  # Qwen2-VL's own limit on long side / short side
MAX_DECODE_PIXELS = 200_000_000  # refuse decompression bombs before decoding them
Image.MAX_IMAGE_PIXELS = MAX_DECODE_PIXELS
TOO_LARGE = f"image has more than {MAX_DECODE_PIXELS:,} pixels"
# What datasets hold. Pillow knows more, and for some of it starts programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # JPEG opens MPO too
ORIENTATION = 0x0112  # EXIF tag: how the camera was held
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
                image = Image.open(io.BytesIO(self.data), formats=FORMATS)
            else:
                if not Path(self.path).is_file():
                    raise BadImage("image file is missing")
                if not Path(self.path).stat().st_size:
                    raise BadImage("image has zero bytes")
                image = Image.open(self.path, formats=FORMATS)
        except BadImage:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadImage(TOO_LARGE) from None
        except Exception as error:  # PIL raises many kinds for hostile bytes
            raise BadImage(f"image cannot be read ({type(error).__name__})") from None
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
            raise BadImage(reason)
        return image


def stored(ref: ImageRef, name: str) -> dict[str, Any]:
    """The image as a file of rows holds it, {bytes, path}: its bytes as they are, so that it stays
    upright and what it was; ``path`` is ``name`` with the suffix of its format. Raises BadImage."""
    with ref.open() as header:
        format = str(header.format)
    suffix = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(format, format.lower())
    data = Path(ref.path).read_bytes() if ref.data is None else ref.data
    return {"bytes": data, "path": f"{name}.{suffix}"}


def image_refs(images: Any, base: Path) -> tuple[ImageRef, ...]:
    """The images of a row, whatever form the column has. Raises BadImage."""
    if images is None:
        return ()
    if not isinstance(images, list):
        images = [images]
    refs = []
    for image in images:
        if isinstance(image, dict):
            data, path = image.get("bytes"), image.get("path")
            if data is not None:
                refs.append(ImageRef(path=str(path or ""), data=data))
                continue
            image = path
        if isinstance(image, bytes):
            refs.append(ImageRef(data=image))
        elif isinstance(image, str) and image:
            refs.append(ImageRef(path=str(base / image)))
        else:
            raise BadImage("image is neither a path nor bytes")
    return tuple(refs)


def upright(image: Image.Image) -> tuple[int, int, Image.Transpose | None]:
    """(height, width, turn) of an opened image once ``turn`` has set it upright.

    A camera's EXIF orientation is obeyed, as transformers' and vLLM's own loaders do: whoever wrote
    the question saw the picture upright. It is read from the header alone, by both who need it, so
    the grid of a row and its pixels cannot disagree. Pillow turns TIFF files itself.
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


def target_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Sides (height, width) that are multiples of ``factor`` with an area within the limits.

    The rule of Qwen2-VL's processor: round both sides; if the area is out of bounds, scale both by
    the same number and round inwards. That rule breaks its own limit where a short side would
    vanish; there the long side is cut, so that applying the rule again changes nothing (given
    max_pixels >= 4 min_pixels; a narrower range may hold no such size).
    """
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


def load_image(ref: ImageRef, *, factor: int, min_pixels: int, max_pixels: int) -> np.ndarray:
    """Decode, set upright, flatten onto white, resize (bicubic) -> uint8 [height, width, 3].

    Threads call this side by side, so each resizes with itself alone. Raises BadImage.
    """
    with ref.open() as image:
        height, width, turn = upright(image)
        size = target_size(
            height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
        )
        try:
            rgb = _flat(image)
            if turn is not None:
                rgb = rgb.transpose(turn)
            if (rgb.height, rgb.width) != (height, width):
                raise BadImage("image has another size than its header says")
            pixels = np.asarray(rgb)
        except BadImage:
            raise
        except Exception as error:
            raise BadImage(f"image cannot be decoded ({type(error).__name__})") from None
    return pixels if (height, width) == size else kernels.resize(pixels, *size, parallel=False)


def _flat(image: Image.Image) -> Image.Image:
    """RGB of any mode; what is transparent becomes white, as in a document."""
    if image.mode in ("I", "F"):
        raise BadImage("image has 32-bit pixels, whose white is unknown")
    if image.mode.startswith("I;16"):  # Pillow clips these at 255 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
