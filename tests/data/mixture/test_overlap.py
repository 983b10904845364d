"""Benchmark questions are recognised by bytes, by what is visible, by their text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.source_files import IMAGE, TEXT, image_file, json_file, parquet_file
from PIL import Image

from ovlt.data.image_refs import BadImage, ImageRef
from ovlt.data.mixture.overlap import (
    BITS,
    BITS_OF_SAME_QUESTION,
    Benchmark,
    Shown,
    dhash,
    image_digest,
    load_benchmark,
    normal_question,
)
from ovlt.data.worlds import synthetic

LONG = "How many of the large red cubes stand to the left of the small ball?"


def pictures(n: int = 30) -> list[Image.Image]:
    families = ["shapes", "charts", "maps"]
    spec = synthetic.WorldSpec(336)
    return [item.image for item in synthetic.generate(families, "train", n, 1, spec)]


def encoded(image: Image.Image, form: str = "PNG", **how: Any) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return ImageRef(data=buffer.getvalue())


def shown(image: ImageRef) -> Shown:
    return Shown(image_digest(image), dhash(image))


def test_a_hash_survives_encoding_and_tells_pictures_apart() -> None:
    images = pictures()
    hashes = [dhash(encoded(image)) for image in images]
    for image, hash in zip(images, hashes, strict=True):
        smaller = image.convert("RGB").resize((224, 224))
        for again in (encoded(smaller, "JPEG", quality=80), encoded(image.convert("RGBA"), "WEBP")):
            assert np.bitwise_count(hash ^ dhash(again)).sum() <= BITS_OF_SAME_QUESTION
        assert (dhash(encoded(image.convert("RGBA"))) == hash).all()
    apart = [np.bitwise_count(a ^ b).sum() for i, a in enumerate(hashes) for b in hashes[i + 1 :]]
    assert min(apart) > BITS


def test_transparent_ground_counts_as_white() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (20, 20, 40, 50))
    white = Image.new("RGB", (64, 64), "white")
    white.paste((0, 0, 0), (20, 20, 40, 50))
    assert (dhash(encoded(image)) == dhash(encoded(white))).all()
    with pytest.raises(BadImage):
        dhash(ImageRef(data=(encoded(white).data or b"")[:90]))


def test_questions_are_compared_without_their_dress() -> None:
    hint = "Hint: Please answer the question and provide the final value, e.g., 1, at the end."
    assert normal_question(f"{hint}\nQuestion: How  many?\nChoices:\n(A) 1\n(B) 2") == "how many"
    assert normal_question("<image>How many ?") == "how many"


def test_each_kind_of_overlap() -> None:
    images = [encoded(image) for image in pictures(6)]
    bench = Benchmark(texts={normal_question(LONG), "how many"})
    bench.images = {image_digest(images[0])}
    bench.hashes = np.stack([dhash(images[0]), dhash(images[1])])
    again = shown(encoded(Image.open(io.BytesIO(images[1].data or b"")), "BMP"))
    far = shown(images[5])
    assert bench.overlap("new", [shown(images[0])]) == "same image"
    assert bench.overlap("new", [far, again]) == "nearly the same image"
    assert bench.overlap(f"<image>{LONG}", [far]) == "same question"
    assert bench.overlap("How many?", [far]) == ""  # a template: no proof
    assert bench.overlap("new", [far]) == ""
    flipped = dhash(images[1]).copy()
    flipped[0] ^= np.uint64((1 << 20) - 1)
    near = Shown(b"other", flipped)
    assert bench.overlap("How many?", [near]) == "same question, similar image"
    assert bench.overlap("new", [near]) == ""
    assert Benchmark().overlap(LONG, [far]) == ""


def test_benchmark_files(tmp_path: Path) -> None:
    data = [encoded(image).data for image in pictures(3)]
    path = parquet_file(
        tmp_path / "testmini.parquet",
        [
            {"pid": "1", "question": LONG, "image": "images/1.jpg", "decoded_image": {"bytes": d}}
            for d in data[:2]
        ],
        {"pid": TEXT, "question": TEXT, "image": TEXT, "decoded_image": IMAGE},
    )
    bench = load_benchmark([path])
    assert (len(bench.images), len(bench.hashes), len(bench.texts)) == (2, 2, 1)
    image_file(tmp_path / "images" / "1.jpg", 4)
    assert load_benchmark([tmp_path]).texts == bench.texts  # all parquet files of a folder
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none is a folder without parquet files"):
        load_benchmark([tmp_path / "none"])
    assert len(load_benchmark([path]).images) == 3  # unpacked beside it, the paths are read too
    other = json_file(tmp_path / "other.json", [{"query": "How many?", "images": ["images/1.jpg"]}])
    assert len(load_benchmark([path, other]).texts) == 2

    wrong = parquet_file(tmp_path / "w.parquet", [{"id": 1}], {"id": pa.int64()})
    with pytest.raises(ValueError, match=r"w.parquet has columns id; it needs a text column"):
        load_benchmark([wrong])
    empty = json_file(tmp_path / "e.json", [{"question": None, "image": "gone.png"}])
    with pytest.raises(ValueError, match=r"e.json has no text and no readable image"):
        load_benchmark([empty])
