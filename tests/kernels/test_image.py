"""Image preprocessing: the bits of Pillow and of the numpy statement, fused or not."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from ovlt_kernels import extension
from ovlt_kernels.image import (
    patchify,
    patchify_reference,
    preprocess,
    resize,
    resize_reference,
)

NEEDS_EXTENSION = pytest.mark.skipif(not extension.HAS_EXTENSION, reason=extension.WHY)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# (h, w) -> (height, width): up, down, one axis, neither, extreme ratios, sides of one pixel; widths
# round the 16 and 64 bytes that the vector code takes at once, and shrunk so far that what 16 bytes
# are made of is wider than 64 and than 128 bytes. Both orders of the passes are among them.
SIZES = [
    ((37, 53), (71, 91)),
    ((91, 71), (37, 53)),
    ((37, 53), (37, 91)),
    ((37, 53), (91, 53)),
    ((37, 53), (37, 53)),
    ((100, 100), (50, 75)),
    ((100, 100), (50, 76)),
    ((131, 97), (61, 203)),
    ((61, 203), (131, 97)),
    ((1, 1), (1, 1)),
    ((1, 1), (23, 17)),
    ((1, 31), (17, 1)),
    ((31, 1), (1, 17)),
    ((2, 3), (301, 299)),
    ((301, 299), (2, 3)),
    ((5, 700), (140, 28)),
    ((700, 5), (28, 140)),
    ((29, 333), (28, 85)),
    ((29, 333), (28, 140)),
    ((768, 1024), (756, 1036)),
    *(((9, width), (7, width + 5)) for width in range(1, 70, 4)),
    *(((7, width + 5), (9, width)) for width in range(1, 70, 4)),
]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def black_and_white(height: int, width: int) -> np.ndarray:
    """The kernel overshoots at each edge of these, below 0 and above 255."""
    return np.where(noise(height, width, 5) < 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_resize_gives_the_bits_of_pillow(source: tuple[int, int], target: tuple[int, int]) -> None:
    for image in (noise(*source), black_and_white(*source)):
        got = resize(image, *target)
        assert got.dtype == np.uint8
        assert got.flags.writeable
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, resize_reference(image, *target))
        if int(PIL.__version__.split(".")[0]) >= 13:  # older: always over the width first
            theirs = Image.fromarray(image).resize(target[::-1], Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(got, np.asarray(theirs))


def test_resize_gives_the_bits_of_pillow_at_sizes_drawn_at_random() -> None:
    rng = np.random.default_rng(11)
    for _ in range(150):
        h, w, height, width = np.exp(rng.uniform(0, 5.3, 4)).astype(int)
        image = noise(h, w, int(rng.integers(1000)))
        np.testing.assert_array_equal(
            resize(image, height, width),
            resize_reference(image, height, width),
            err_msg=f"{(h, w)} -> {(height, width)}",
        )


def test_a_resize_overshoots_and_is_clipped() -> None:
    step = np.repeat([[60, 200]], 20).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    wide = resize(step, 40, 400)
    assert wide.min() < 60
    assert wide.max() > 200
    edge = resize(np.where(step > 60, 255, 0).astype(np.uint8), 40, 400).astype(int)
    assert edge.min() == 0
    assert edge.max() == 255
    assert (np.diff(edge, axis=1) >= 0).all()  # a sum that is not clipped would wrap round
    assert (resize(np.full((9, 11, 3), 255, np.uint8), 31, 5) == 255).all()
    assert (resize(np.zeros((9, 11, 3), np.uint8), 31, 5) == 0).all()


def test_an_image_of_the_wanted_size_is_copied() -> None:
    image = noise(33, 47)
    copy = resize(image, 33, 47)
    np.testing.assert_array_equal(copy, image)
    assert not np.shares_memory(copy, image)


STRIDED: dict[str, Any] = {
    "cropped": lambda a: a[3:-4, 5:-6],
    "every other": lambda a: a[::2, ::3],
    "upside down": lambda a: a[::-1, ::-1],
    "blue first": lambda a: a[..., ::-1],
    "turned": lambda a: a.transpose(1, 0, 2),
    "channels first in memory": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(
        1, 2, 0
    ),
    "one row for all": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("name", STRIDED)
def test_strided_images_are_read_where_they_lie(name: str) -> None:
    image = STRIDED[name](noise(84, 112))
    packed = image.copy(order="C")
    np.testing.assert_array_equal(resize(image, 56, 28), resize(packed, 56, 28))
    np.testing.assert_array_equal(
        preprocess(image, 56, 28, MEAN, STD), preprocess(packed, 56, 28, MEAN, STD)
    )
    whole = image[: image.shape[0] // 14 * 14, : image.shape[1] // 14 * 14]
    np.testing.assert_array_equal(
        patchify(whole, MEAN, STD, merge=1), patchify_reference(whole, MEAN, STD, merge=1)
    )


@pytest.mark.filterwarnings("error")
def test_read_only_images_are_read_without_a_warning_and_stay_as_they_are() -> None:
    image = np.asarray(Image.fromarray(noise(56, 84)))
    assert not image.flags.writeable
    before = image.copy()
    resize(image, 20, 30)
    patchify(image, MEAN, STD)
    preprocess(image, 28, 28, MEAN, STD)
    np.testing.assert_array_equal(image, before)
    assert not image.flags.writeable


# patch, merge, temporal: Qwen2-VL's, Qwen3-VL's, one frame, none merged, patches over one register
CUTS = [(14, 2, 2), (16, 2, 2), (14, 1, 1), (7, 3, 3), (1, 1, 1), (17, 2, 2), (24, 1, 4)]


@pytest.mark.parametrize(("patch", "merge", "temporal"), CUTS)
def test_patches_are_those_of_the_statement(patch: int, merge: int, temporal: int) -> None:
    factor = patch * merge
    for blocks in ((1, 1), (3, 5), (7, 2)):
        image = noise(blocks[0] * factor, blocks[1] * factor, seed=factor)
        got = patchify(image, MEAN, STD, patch, merge, temporal)
        want = patchify_reference(image, MEAN, STD, patch, merge, temporal)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("patch", "merge", "temporal"), CUTS)
@pytest.mark.parametrize("source", [(101, 67), (67, 301), (1, 1), (400, 90)])
def test_fused_equals_composed(
    source: tuple[int, int], patch: int, merge: int, temporal: int
) -> None:
    cut = (MEAN, STD, patch, merge, temporal)
    factor = patch * merge
    for height, width in ((factor, factor), (6 * factor, 4 * factor), (2 * factor, 9 * factor)):
        for image in (noise(*source), black_and_white(*source)):
            fused = preprocess(image, height, width, *cut)
            composed = patchify_reference(resize_reference(image, height, width), *cut)
            np.testing.assert_array_equal(fused, composed)


def test_one_thread_gives_the_same_as_many() -> None:
    image = noise(411, 533)
    for a, b in (
        (resize(image, 700, 511), resize(image, 700, 511, parallel=False)),
        (
            preprocess(image, 616, 504, MEAN, STD),
            preprocess(image, 616, 504, MEAN, STD, parallel=False),
        ),
        (
            patchify(image[:392, :532], MEAN, STD),
            patchify(image[:392, :532], MEAN, STD, parallel=False),
        ),
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("parallel", [True, False])
def test_python_threads_do_not_disturb_each_other(parallel: bool) -> None:
    images = [noise(211 + i, 307 - i, seed=i) for i in range(24)]

    def both(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (
            resize(image, 140, 336, parallel=parallel),
            preprocess(image, 252, 140, MEAN, STD, parallel=parallel),
        )

    alone = [both(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(both, images))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_out_is_filled_and_returned() -> None:
    image = noise(56, 84)
    whole = np.full((30, 1176), np.nan, np.float32)
    out = whole[3:27]
    assert patchify(image, MEAN, STD, out=out) is out
    np.testing.assert_array_equal(out, patchify_reference(image, MEAN, STD))
    out[:] = np.nan
    assert preprocess(noise(31, 41), 56, 84, MEAN, STD, out=out) is out
    want = patchify_reference(resize_reference(noise(31, 41), 56, 84), MEAN, STD)
    np.testing.assert_array_equal(out, want)
    assert np.isnan(whole[:3]).all()
    assert np.isnan(whole[27:]).all()


def test_without_the_extension_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(101, 67)[:, ::-1]

    def all_three() -> list[np.ndarray]:
        out = np.empty((24, 1176), np.float32)
        return [
            resize(image, 56, 84),
            patchify(resize(image, 56, 84), MEAN, STD),
            preprocess(image, 56, 84, MEAN, STD, out=out),
            out,
        ]

    with_it = all_three()
    monkeypatch.setattr("ovlt_kernels.image.HAS_EXTENSION", False)
    for a, b in zip(with_it, all_three(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
        assert b.flags.writeable


@NEEDS_EXTENSION
@pytest.mark.slow
def test_machines_without_avx512_compute_the_same() -> None:
    """The same tests in a process that takes the portable functions."""
    root = Path(__file__).parents[2]
    names = "resize_gives or patches_are or fused_equals or same_as_many"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_, "-k", names, __file__],
        env={**os.environ, "OVLT_SIMD": "avx2"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


# --- mistakes ---------------------------------------------------------------------------------

GOOD = noise(56, 28)
MISTAKES: dict[str, tuple[Any, str]] = {
    "tensor": (lambda: resize(torch.zeros(5, 5, 3), 5, 5), "tensor.numpy"),  # type: ignore[arg-type]
    "float": (lambda: resize(np.zeros((5, 5, 3)), 5, 5), "uint8, not float64"),
    "grey": (lambda: resize(GOOD[..., 0], 5, 5), "convert"),
    "channels first": (lambda: patchify(GOOD.transpose(2, 0, 1), MEAN, STD), "channels last"),
    "four channels": (lambda: resize(np.zeros((5, 5, 4), np.uint8), 5, 5), r"\[h, w, 3\]"),
    "no rows": (lambda: resize(GOOD[:0], 5, 5), "no pixels"),
    "no columns": (lambda: preprocess(GOOD[:, :0], 28, 28, MEAN, STD), "no pixels"),
    "to nothing": (lambda: resize(GOOD, 0, 5), "at least 1 pixel"),
    "to less": (lambda: preprocess(GOOD, 28, -28, MEAN, STD), "at least 1 pixel"),
    "half a pixel": (lambda: resize(GOOD, 5, 5.5), "whole"),  # type: ignore[arg-type]
    "patchify odd": (lambda: patchify(GOOD[:42], MEAN, STD), "multiples of .* = 28, not 42 and 28"),
    "preprocess odd": (lambda: preprocess(GOOD, 28, 42, MEAN, STD), "not 28 and 42"),
    "patch 0": (lambda: patchify(GOOD, MEAN, STD, patch=0), "at least 1"),
    "two means": (lambda: patchify(GOOD, MEAN[:2], STD), "one number per channel"),
    "std 0": (lambda: patchify(GOOD, MEAN, (1, 0, 1)), "std must be > 0"),
    "std nan": (lambda: preprocess(GOOD, 28, 28, MEAN, (1, float("nan"), 1)), "std must be > 0"),
    "out shape": (lambda: patchify(GOOD, MEAN, STD, out=np.empty((8, 7), np.float32)), "np.empty"),
    "out dtype": (lambda: patchify(GOOD, MEAN, STD, out=np.empty((8, 1176))), "not float64"),
    "out strided": (
        lambda: patchify(GOOD, MEAN, STD, out=np.empty((16, 1176), np.float32)[::2]),
        "contiguous",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, says = MISTAKES[name]
    for there in {extension.HAS_EXTENSION, False}:
        monkeypatch.setattr("ovlt_kernels.image.HAS_EXTENSION", there)
        with pytest.raises(ValueError, match=says):
            call()


@NEEDS_EXTENSION
def test_the_operators_themselves_refuse_what_they_cannot_read() -> None:
    ops = torch.ops.ovlt
    image, out = torch.zeros(28, 28, 3, dtype=torch.uint8), torch.zeros(4, 1176)
    scale_shift = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="contiguous uint8"):
        ops.resize_bicubic(image.float(), image.clone(), True)
    with pytest.raises(RuntimeError, match="contiguous uint8"):
        ops.resize_bicubic(image[:, ::2], image.clone(), True)
    with pytest.raises(RuntimeError, match="out must be"):
        ops.resize_bicubic(image, image.clone()[..., 0], True)
    with pytest.raises(RuntimeError, match="height and width"):
        ops.resize_bicubic(image, image.new_empty(0, 5, 3), True)
    with pytest.raises(RuntimeError, match="multiples"):
        ops.patchify(image, scale_shift, out, 14, 3, 2, True)
    with pytest.raises(RuntimeError, match="out must be"):
        ops.patchify(image, scale_shift, out[:3], 14, 2, 2, True)
    with pytest.raises(RuntimeError, match="scale_shift"):
        ops.preprocess(image, 28, 28, scale_shift[0], out, 14, 2, 2, True)
