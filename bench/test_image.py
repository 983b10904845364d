"""Image preprocessing of ``ovlt_kernels`` against transformers' processors (``make bench``).

A noise image goes to the size that Qwen2-VL's rule gives it, and into patches. "pil" and
"torchvision" are transformers' two processors of Qwen2-VL; "resize, patchify" are our two functions
one after the other, as the trainer calls them; "floor" writes as many bytes and does nothing else.
max_pixel_difference is the distance to "pil", in normalised values (a step of 8 bits: 0.015).

All run on a CPU, whatever else the machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL
import pytest
import torch
import transformers
from PIL import Image
from timing import timed

from ovlt.data.images import PixelLimits, target_size
from ovlt.model.patchify import Patchify
from ovlt_kernels.image import patchify, preprocess, resize

LIMITS = {"min_pixels": 56 * 56, "max_pixels": 4096 * 28 * 28}
SIZES = {"1024x768": (768, 1024), "2048x1536": (1536, 2048)}
Run = Callable[[], np.ndarray]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def contenders(image: np.ndarray, height: int, width: int) -> dict[str, Run]:
    pil = transformers.Qwen2VLImageProcessorPil(**LIMITS)
    torchvision = transformers.Qwen2VLImageProcessor(**LIMITS)
    source = Image.fromarray(image)
    cut = Patchify.from_processor(pil)
    floor = np.full(cut.shape(height, width), 0.5, np.float32)
    return {
        "ovlt": lambda: preprocess(image, height, width, cut.mean, cut.std),
        "resize, patchify": lambda: patchify(resize(image, height, width), cut.mean, cut.std),
        "pil": lambda: pil(source, return_tensors="np")["pixel_values"],
        "torchvision": lambda: torchvision(source, return_tensors="pt")["pixel_values"].numpy(),
        "floor": lambda: np.full_like(floor, 0.5),
    }


@pytest.mark.parametrize("which", ["ovlt", "resize, patchify", "pil", "torchvision", "floor"])
@pytest.mark.parametrize("size", SIZES)
def test_preprocess(benchmark: Any, size: str, which: str, threads: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZES[size], 3), np.uint8)
    height, width = target_size(*image.shape[:2], PixelLimits(28, **LIMITS))
    runs = contenders(image, height, width)
    difference = float(np.abs(runs[which]() - runs["pil"]()).max())
    if which in ("ovlt", "resize, patchify"):
        assert difference < 1e-6
    group = f"preprocess {size}, {threads} threads"
    info = {"which": which, "to": [height, width], "pillow": PIL.__version__}
    info["max_pixel_difference"] = difference
    timed(benchmark, group, runs[which], **info)


@pytest.mark.parametrize("which", ["ovlt", "pil"])
@pytest.mark.parametrize("size", SIZES)
def test_resize(benchmark: Any, size: str, which: str) -> None:
    """Pillow's image -> array by one thread, as the pool that decodes the images calls it."""
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZES[size], 3), np.uint8))
    height, width = target_size(source.height, source.width, PixelLimits(28, **LIMITS))
    runs: dict[str, Run] = {
        "ovlt": lambda: resize(np.asarray(source), height, width, parallel=False),
        "pil": lambda: np.asarray(source.resize((width, height), Image.Resampling.BICUBIC)),
    }
    np.testing.assert_array_equal(runs["ovlt"](), runs["pil"]())
    timed(benchmark, f"resize {size}", runs[which], which=which, pillow=PIL.__version__)
