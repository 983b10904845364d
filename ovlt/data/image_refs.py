"""Where the encoded bytes of an image are, and what of them is not opened at all."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from PIL import Image

MAX_ASPECT = 200  # Qwen2-VL's own limit on long side / short side
MAX_DECODE_PIXELS = 200_000_000  # refuse decompression bombs before decoding them
Image.MAX_IMAGE_PIXELS = MAX_DECODE_PIXELS
TOO_LARGE = f"image has more than {MAX_DECODE_PIXELS:,} pixels"
# The formats that datasets hold. Pillow knows more, and starts programs for some (EPS:
# Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # JPEG opens MPO too


class BadImage(ValueError):
    """An image that cannot be used: a reason short enough to count by, and ``detail`` of this one.

    The detail is the path that was tried, or where the image would be.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


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
    digest: bytes = b""  # of the encoded bytes, if ``again`` reads them

    @property
    def key(self) -> str | bytes:
        """What tells images apart without reading them: a digest of their bytes, or their file."""
        return self.digest or self.data or self.path

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
