"""Pixels are the numbers of transformers, and a hostile file is counted and does no harm."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovlt.data.image_refs import FORMATS, MAX_DECODE_PIXELS, BadImage, ImageRef
from ovlt.data.images import PixelLimits, load_image, target_size, upright
from ovlt.model.patchify import Patchify
from ovlt_kernels.image import resize_reference

LIMITS = PixelLimits(factor=28, min_pixels=3136, max_pixels=100352)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def ref(image: Image.Image, kind: str = "PNG", **options: Any) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return ImageRef(data=buffer.getvalue())


def png_claiming(width: int, height: int) -> bytes:
    """A small file whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


# --- the processor's arithmetic ---------------------------------------------------------------


@pytest.mark.parametrize("backend", ["Qwen2VLImageProcessorPil", "Qwen2VLImageProcessor"])
@pytest.mark.parametrize(
    ("height", "width"), [(28, 28), (84, 56), (196, 140), (61, 317), (700, 301), (9, 14), (1, 150)]
)
def test_patches_are_those_of_transformers(height: int, width: int, backend: str) -> None:
    """The engine's processor is given the loaded image and must not resize it again."""
    import transformers

    limits = {"min_pixels": LIMITS.min_pixels, "max_pixels": LIMITS.max_pixels}
    processor = getattr(transformers, backend)(**limits)  # on Pillow, and on torchvision
    image = load_image(ref(Image.fromarray(noise(height, width, seed=height))), LIMITS)
    for resize in (True, False):
        theirs = processor(Image.fromarray(image), do_resize=resize, return_tensors="np")
        ours = Patchify.from_processor(processor)(image)
        h, w = image.shape[:2]
        assert theirs["image_grid_thw"].tolist() == [[1, h // 14, w // 14]]
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(61, 317), (317, 61), (300, 301), (9, 14), (2, 150)])
def test_loaded_images_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    image = noise(*size, seed=5)
    loaded = load_image(ref(Image.fromarray(image)), LIMITS)
    np.testing.assert_array_equal(loaded, resize_reference(image, *loaded.shape[:2]))


def test_target_size_is_the_rule_of_transformers_and_keeps_its_limits() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(7)
    differ = 0
    for _ in range(4000):
        # Sides from 1 to about 8000 pixels, and every aspect ratio that is accepted.
        short = int(np.exp(rng.uniform(0, 6)))
        long = min(200 * short, int(short * np.exp(rng.uniform(0, math.log(200)))))
        height, width = (short, long) if rng.random() < 0.5 else (long, short)
        low = int(rng.integers(1, 20)) * 784
        limits = {"factor": 28, "min_pixels": low, "max_pixels": int(low * rng.uniform(4, 40))}
        h, w = target_size(height, width, PixelLimits(**limits))
        assert h % 28 == w % 28 == 0
        assert low <= h * w <= limits["max_pixels"], (height, width, limits)
        assert target_size(h, w, PixelLimits(**limits)) == (h, w)
        theirs = smart_resize(height, width, **limits)
        if theirs[0] * theirs[1] <= limits["max_pixels"]:
            assert (h, w) == theirs
        else:  # their rule breaks its own limit for slivers; the engine must not resize ours again
            assert min(h, w) == min(theirs)
            assert smart_resize(h, w, **limits) == (h, w)
            differ += 1
    assert 0 < differ < 2000


def test_a_range_too_narrow_for_any_size_keeps_to_the_upper_limit() -> None:
    h, w = target_size(100, 130, PixelLimits(28, min_pixels=12000, max_pixels=12100))
    assert h % 28 == w % 28 == 0
    assert 784 <= h * w <= 12100


@pytest.mark.parametrize("size", [(100, 70), (28, 28), (1, 1), (700, 900), (37, 3)])
def test_loaded_images_have_the_size_that_their_header_promised(size: tuple[int, int]) -> None:
    source = ref(Image.fromarray(noise(*size)))
    with source.open() as header:
        height, width, _ = upright(header)
    image = load_image(source, LIMITS)
    assert image.dtype == np.uint8
    assert image.shape == (*target_size(height, width, LIMITS), 3)


def test_an_image_of_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = noise(84, 112)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(ImageRef(str(tmp_path / "a.png")), LIMITS), pixels)
    np.testing.assert_array_equal(load_image(ref(Image.fromarray(pixels)), LIMITS), pixels)


# --- modes ------------------------------------------------------------------------------------


def test_transparent_is_white_in_every_mode_that_knows_it() -> None:
    grey = noise(56, 56, 1)
    alpha = np.where(np.arange(56) < 20, 0, 255).astype(np.uint8)[None].repeat(56, 0)
    expected = np.where(alpha == 0, 255, grey)[..., None].repeat(3, 2)
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    for image in (la, la.convert("RGBA")):
        np.testing.assert_array_equal(load_image(ref(image), LIMITS), expected)
    half = Image.new("RGBA", (56, 56), (0, 0, 0, 128))
    assert load_image(ref(half), LIMITS)[0, 0].tolist() == [127, 127, 127]


def test_palettes_with_and_without_a_transparent_colour() -> None:
    image = Image.new("P", (56, 56), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 28, 56))
    opaque = load_image(ref(image), LIMITS)
    assert opaque[0, 0].tolist() == [0, 0, 0]
    assert opaque[0, 55].tolist() == [10, 200, 30]
    clear = load_image(ref(image, transparency=0), LIMITS)
    assert clear[0, 0].tolist() == [255, 255, 255]
    assert clear[0, 55].tolist() == [10, 200, 30]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """Pillow's own conversion makes every value above 255 white, of 65535: nearly all."""
    deep = (np.arange(56 * 56, dtype=np.uint32) * 20).astype(np.uint16).reshape(56, 56)
    for kind in ("PNG", "TIFF"):
        image = load_image(ref(Image.fromarray(deep), kind), LIMITS)
        np.testing.assert_array_equal(image, (deep >> 8)[..., None].repeat(3, 2))


def test_cmyk_one_bit_and_grey_become_rgb() -> None:
    cmyk = Image.new("CMYK", (56, 56), (0, 255, 255, 0))
    assert load_image(ref(cmyk, "TIFF"), LIMITS)[3, 3].tolist() == [255, 0, 0]
    red = load_image(ref(cmyk, "JPEG", quality=95), LIMITS)[3, 3].astype(int)
    assert np.abs(red - [255, 0, 0]).max() < 8
    for mode, white in (("1", 1), ("L", 255)):
        image = load_image(ref(Image.new(mode, (56, 56), white)), LIMITS)
        assert image.shape == (56, 56, 3)
        assert image.min() == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (56, 56), color) for color in ((255, 0, 0), (0, 0, 255))]
    moving = ref(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(moving, LIMITS)[5, 5].tolist() == [255, 0, 0]


# --- orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_set_upright_and_their_header_agrees(kind: str, orientation: int) -> None:
    """The result is that of transformers' own loader; on a sideways photograph "left" is wrong."""
    from PIL import ImageOps

    stored = Image.fromarray(noise(4, 6).repeat(28, 0).repeat(28, 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    photo = ref(stored, kind, exif=exif, **options)
    with photo.open() as header:
        height, width, _ = upright(header)
    image = load_image(photo, LIMITS)
    assert photo.data is not None
    expected = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(photo.data))).convert("RGB")
    )
    assert (height, width) == expected.shape[:2] == ((112, 168) if orientation < 5 else (168, 112))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0xy"]
)
def test_a_broken_exif_block_turns_nothing(exif: bytes) -> None:
    pixels = noise(56, 84)
    image = ref(Image.fromarray(pixels), "WEBP", lossless=True, exif=exif)
    np.testing.assert_array_equal(load_image(image, LIMITS), pixels)


def test_an_orientation_that_does_not_exist_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    image = ref(Image.fromarray(noise(56, 84)), "PNG", exif=exif)
    assert load_image(image, LIMITS).shape == (56, 84, 3)


# --- hostile files ----------------------------------------------------------------------------

GOOD_PNG = ref(Image.fromarray(noise(60, 60))).data or b""
GOOD_JPEG = ref(Image.fromarray(noise(60, 60)), "JPEG").data or b""
NOT_READ = "image cannot be read (UnidentifiedImageError)"
HOSTILE = {
    "zero bytes": (b"", "image has zero bytes"),
    "text": (b"<html>404 not found</html>", NOT_READ),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NOT_READ),
    "header alone": (GOOD_PNG[:20], None),
    "truncated png": (GOOD_PNG[:-3000], "image cannot be decoded (OSError)"),
    "truncated jpeg": (GOOD_JPEG[:-900], "image cannot be decoded (OSError)"),
    "bent png": (GOOD_PNG[:70] + b"\xff" * 40 + GOOD_PNG[110:], None),
    "40,000 x 10": (png_claiming(40_000, 10), "one side of the image is more than 200 times the"),
    "10 x 40,000": (png_claiming(10, 40_000), "one side of the image is more than 200 times the"),
    "40,000 x 30,000": (png_claiming(40_000, 30_000), "image has more than 200,000,000 pixels"),
    "16,000 x 16,000": (png_claiming(16_000, 16_000), "image has more than 200,000,000 pixels"),
    "no width": (png_claiming(0, 10), None),
    "claims more than it holds": (png_claiming(300, 300), "image cannot be decoded (OSError)"),
}


def reason_of(source: ImageRef) -> str:
    with pytest.raises(BadImage) as caught:
        load_image(source, LIMITS)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_a_reason_that_can_be_counted(name: str, tmp_path: Path) -> None:
    data, expected = HOSTILE[name]
    from_bytes = reason_of(ImageRef(path="some/name.png", data=data))
    (tmp_path / "bad image.png").write_bytes(data)
    from_file = reason_of(ImageRef(path=str(tmp_path / "bad image.png")))
    for reason in (from_bytes, from_file):
        assert "name.png" not in reason
        assert "bad image" not in reason
        assert "\n" not in reason
        assert len(reason) < 80
        assert reason.startswith(expected or "image cannot be")
        assert "BytesIO" not in reason
        assert " at 0x" not in reason


def test_every_prefix_of_a_file_is_loaded_or_refused() -> None:
    for whole in (GOOD_PNG, GOOD_JPEG):
        reasons = {
            reason_of(ImageRef(data=whole[:length])) for length in range(0, len(whole) - 100, 97)
        }
        assert len(reasons) <= 6


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of odd TIFF tags
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_flipped_bytes_are_loaded_or_refused() -> None:
    rng = np.random.default_rng(3)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        whole = np.frombuffer(ref(Image.fromarray(noise(33, 41)), kind).data or b"", np.uint8)
        for _ in range(40):
            bent = whole.copy()
            where = rng.integers(0, min(len(bent), 200), 6)
            bent[where] = rng.integers(0, 256, 6)
            try:
                image = load_image(ImageRef(data=bent.tobytes()), LIMITS)
            except BadImage:
                continue
            assert image.dtype == np.uint8
            assert 3136 <= image.shape[0] * image.shape[1] <= 100352


@pytest.mark.parametrize("path", ["", "no/such.png", "a\0b.png", "x" * 5000, "/", "/dev/zero"])
def test_paths_to_no_file_are_refused(path: str) -> None:
    assert reason_of(ImageRef(path=path)).startswith("image")


def test_what_is_not_bytes_is_refused() -> None:
    text: Any = "iVBORw0KGgo="
    assert reason_of(ImageRef(data=text)) == "image cannot be read (TypeError)"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    assert "32-bit" in reason_of(ref(Image.new(mode, (56, 56), 7), "TIFF"))


def test_formats_that_start_other_programs_are_not_opened(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, and a data set is no place for programs."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\n%%EndComments\nshowpage\n"
    assert reason_of(ImageRef(data=script)) == NOT_READ
    assert "EPS" not in FORMATS
    assert Image.MAX_IMAGE_PIXELS == MAX_DECODE_PIXELS


def test_files_are_closed_again(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.fromarray(noise(60, 60)).save(tmp_path / "a.png")
    for _ in range(3):
        load_image(ImageRef(str(tmp_path / "a.png")), LIMITS)
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]
