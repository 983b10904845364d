"""Image preprocessing on CPUs: bicubic resize, normalise, cut into the patches of a vision tower.

Images are numpy uint8 arrays ``[h, w, 3]``, RGB, as ``numpy.asarray`` of a Pillow image gives (of a
torch tensor, ``tensor.numpy()`` shares the memory). They may be read-only and strided; one that is
not contiguous is copied once. Each function has a plain statement beside it, which runs if the
extension was not built and gives the same numbers to the bit.

All functions may be called from several Python threads at once, and let other threads run.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovlt_kernels.extension import HAS_EXTENSION


def resize(image: np.ndarray, height: int, width: int, *, parallel: bool = True) -> np.ndarray:
    """Resize by antialiased bicubic: the pixels of Pillow 13's ``Image.resize(..., BICUBIC)``.

    Args:
        image: uint8 ``[h, w, 3]``.
        height: of the result, in pixels, as is ``width``.
        parallel: over the threads of torch. ``False`` if the caller's own threads each take an
            image: every one of them would otherwise start a team of its own.

    Returns:
        uint8 ``[height, width, 3]``, contiguous and writable; a copy if the size is the same.

    Raises:
        ValueError: for another dtype or shape, and for a side of no pixels.
    """
    height, width = _check_size(height, width)
    _check_image(image)
    if not HAS_EXTENSION:
        return resize_reference(image, height, width)
    out = np.empty((height, width, 3), np.uint8)
    torch.ops.ovlt.resize_bicubic(_tensor(image), torch.from_numpy(out), parallel)
    return out


def patchify(
    image: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    *,
    out: np.ndarray | None = None,
    parallel: bool = True,
) -> np.ndarray:
    """Normalise an image and cut it into the rows that the vision tower takes.

    Args:
        image: uint8 ``[h, w, 3]``, both sides multiples of ``patch * merge``.
        mean: of each channel, for pixels in [0, 1], as is ``std`` (> 0).
        patch: side of a patch in pixels.
        merge: side, in patches, of the blocks that the tower merges.
        temporal: frames of a patch; a still image fills every one.
        out: C-contiguous float32 array of the result's shape to write into; None makes one.
        parallel: as in :func:`resize`.

    Returns:
        float32 ``[h / patch * w / patch, 3 * temporal * patch * patch]``: patches block by block,
        and within a patch the order channel, time, y, x. ``out`` if it was given.

    Raises:
        ValueError: for dtypes, shapes, sides or values that do not fit.
    """
    _check_image(image)
    _check_patches(image.shape[0], image.shape[1], patch, merge, temporal)
    scale_shift = _scale_shift(mean, std)
    out = _output(image.shape[0], image.shape[1], patch, temporal, out)
    if HAS_EXTENSION:
        torch.ops.ovlt.patchify(
            _tensor(image), scale_shift, torch.from_numpy(out), patch, merge, temporal, parallel
        )
    else:
        out[...] = patchify_reference(image, mean, std, patch, merge, temporal)
    return out


def preprocess(
    image: np.ndarray,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    *,
    out: np.ndarray | None = None,
    parallel: bool = True,
) -> np.ndarray:
    """Return ``patchify(resize(image, height, width), ...)``, in one pass and equal to the bit.

    The resized image is rounded to 8 bits as it is there, but exists only as one row of blocks in
    the cache. Arguments, result and errors are those of :func:`resize` and :func:`patchify`.
    """
    height, width = _check_size(height, width)
    _check_image(image)
    _check_patches(height, width, patch, merge, temporal)
    scale_shift = _scale_shift(mean, std)
    if not HAS_EXTENSION:
        resized = resize_reference(image, height, width)
        return patchify(resized, mean, std, patch, merge, temporal, out=out)
    out = _output(height, width, patch, temporal, out)
    torch.ops.ovlt.preprocess(
        _tensor(image),
        height,
        width,
        scale_shift,
        torch.from_numpy(out),
        patch,
        merge,
        temporal,
        parallel,
    )
    return out


def resize_reference(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The plain statement of :func:`resize`, without checks: Pillow's two passes by themselves.

    Each pass rounds to 8 bits, so their order shows in the pixels. Pillow resizes the width first;
    since version 13 the height first, if the height loses more than twice the pixels that the width
    loses. Here the order is explicit, so every version of Pillow gives the same.
    """
    h, w = image.shape[:2]
    by_height, by_width = (w, height), (width, h)
    first = by_height if height < h and h - height > 2 * (w - width) else by_width
    rgb = Image.fromarray(image)
    for size in (first, (width, height)):
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return np.array(rgb)


def patchify_reference(
    image: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
) -> np.ndarray:
    """The plain statement of :func:`patchify`, without checks."""
    h, w, _ = image.shape
    p, m = patch, merge
    scale, shift = _scale_shift(mean, std).numpy()
    x = image.astype(np.float32) * scale - shift
    x = x.reshape(h // (p * m), m, p, w // (p * m), m, p, 3)
    x = x.transpose(0, 3, 1, 4, 6, 2, 5)  # block row, block column, m, m, channel, y, x
    out = np.empty((*x.shape[:5], temporal, p, p), dtype=np.float32)
    out[...] = x[:, :, :, :, :, None]
    return out.reshape((h // p) * (w // p), -1)


class _ReadOnly:
    """A view that claims to be writable: torch.from_numpy warns of others, and we only read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # keeps the memory alive as long as the view
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _tensor(image: np.ndarray) -> Tensor:
    image = np.ascontiguousarray(image)
    return torch.from_numpy(image if image.flags.writeable else np.asarray(_ReadOnly(image)))


def _scale_shift(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 [2, 3] so that (pixel / 255 - mean) / std = pixel * scale - shift."""
    exact = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    if any(value.shape != (3,) for value in exact):
        raise ValueError(f"mean and std must hold one number per channel, 3, not {mean} and {std}.")
    if not (exact[1] > 0).all():
        raise ValueError(f"std must be > 0 in each channel, not {std}.")
    return torch.from_numpy(np.stack((1.0 / (255.0 * exact[1]), exact[0] / exact[1]))).float()


def _output(
    height: int, width: int, patch: int, temporal: int, out: np.ndarray | None
) -> np.ndarray:
    shape = ((height // patch) * (width // patch), 3 * temporal * patch * patch)
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be a C-contiguous float32 array {list(shape)}, not {out.dtype} "
            f"{list(out.shape)}: np.empty({shape}, np.float32) makes one."
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only: pass an array that can be written.")
    return out


def _check_image(image: object) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image must be a numpy array, not {type(image).__name__}: use numpy.asarray(image) of "
            "a Pillow image, tensor.numpy() of a tensor."
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be [h, w, 3], not {list(image.shape)}: convert a Pillow image with "
            '.convert("RGB"), and put channels last with .transpose(1, 2, 0).'
        )
    if image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8, not {image.dtype}: bring it to 0..255 and use "
            ".astype(numpy.uint8)."
        )
    if not image.size:
        raise ValueError(f"image has a side of no pixels: {list(image.shape)}.")


def _check_size(height: SupportsIndex, width: SupportsIndex) -> tuple[int, int]:
    try:
        sides = operator.index(height), operator.index(width)
    except TypeError:
        raise ValueError(f"height and width must be whole, not {height} and {width}.") from None
    if min(sides) < 1:
        raise ValueError(f"height and width must be at least 1 pixel, not {height} and {width}.")
    return sides


def _check_patches(height: int, width: int, patch: int, merge: int, temporal: int) -> None:
    if min(patch, merge, temporal) < 1:
        raise ValueError(
            f"patch, merge and temporal must be at least 1, not {patch}, {merge} and {temporal}."
        )
    factor = patch * merge
    if height % factor or width % factor:
        raise ValueError(
            f"height and width must be multiples of patch * merge = {factor}, not {height} and "
            f"{width}: resize first (ovlt.data.images.target_size gives such a size)."
        )
