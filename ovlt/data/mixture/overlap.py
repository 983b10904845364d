"""Does a training question come from a benchmark? By its image, and by its text.

455 of MathVista's 1,000 testmini questions come from sources that are trained on. A benchmark's
copy of an image is often encoded anew, so equal bytes do not suffice: ``dhash`` compares what is
drawn. Templates repeat over many images ("Is X the minimum?"), so a text alone counts only when it
is long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovlt.data.images import BadImage, ImageRef, image_refs
from ovlt.data.readers.conversations import bare_question
from ovlt.data.tables import column_names, read_table

MIN_WORDS = 12  # a shorter question is a template that many images share
SIDE = 32  # the hash compares 32 x 32 neighbours: 1024 bits
# On 90 images of each synthetic family, re-encoded in four ways (JPEG, from half to 1.5 times the
# size), bits that differ: median 1 to 3 for four families, 10 for tables, 20 for maps, at most 53.
# Between different images: at most 4 in 0 to 0.15 % of the pairs; line drawings and tables come
# within 48, which therefore counts only with the same question.
BITS = 4
BITS_OF_SAME_QUESTION = 48
_WORDS = SIDE * SIDE // 64
_FLAT = 6  # grey levels: smaller steps are what JPEG leaves on a plain ground

_TEXTS = ("question", "query", "problem")
_IMAGES = re.compile(r"(decoded_)?images?(_\d+)?")


@dataclass
class Benchmark:
    """The images and questions of benchmark files."""

    images: set[bytes] = field(default_factory=set)  # digests of the encoded images
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, _WORDS), np.uint64))
    texts: set[str] = field(default_factory=set)  # as normal_question gives them
    bits: int = BITS

    def overlap(self, problem: str, shown: Sequence[Shown]) -> str:
        """Why a question belongs to the benchmark; "" where it does not.

        In this order: the same bytes of an image; an image whose hash differs in at most ``bits``
        of 1024; one that differs in at most 48, with the same question; the same question of at
        least 12 words.
        """
        if any(image.digest in self.images for image in shown):
            return "same image"
        near = min((self._nearest(image.hash) for image in shown), default=SIDE * SIDE)
        if near <= self.bits:
            return "nearly the same image"
        text = normal_question(problem)
        if text not in self.texts:
            return ""
        if near <= BITS_OF_SAME_QUESTION:
            return "same question, similar image"
        return "same question" if len(text.split()) >= MIN_WORDS else ""

    def _nearest(self, hash: np.ndarray | None) -> int:
        if hash is None or not len(self.hashes):
            return SIDE * SIDE
        return int(np.bitwise_count(self.hashes ^ hash).sum(axis=1).min())


@dataclass(frozen=True)
class Shown:
    """What is compared of an image."""

    digest: bytes
    hash: np.ndarray | None = None  # uint64 [16]; None where it is not needed


def load_benchmark(paths: Sequence[str | Path], bits: int = BITS) -> Benchmark:
    """Index parquet, JSON or JSONL files, or the parquet files of folders, with a text column
    (question, query, problem) or image columns (image, decoded_image, images, image_1 ...). Raises
    ValueError: no file, no such column, or nothing in it that can be compared with."""
    bench = Benchmark(bits=bits)
    hashes: list[np.ndarray] = []
    for path in [file for place in paths for file in _files(Path(place))]:
        names = column_names(path)
        texts = [name for name in names if name in _TEXTS]
        columns = [name for name in names if _IMAGES.fullmatch(name)]
        if not texts and not columns:
            raise ValueError(
                f"benchmark {path} has columns {', '.join(names) or 'none'}; it needs a text "
                f"column ({', '.join(_TEXTS)}) or an image column (image, decoded_image, images)"
            )
        found = 0
        for row in read_table(path, [*texts, *columns]):
            if not isinstance(row, dict):
                continue
            for name in texts:
                if isinstance(row.get(name), str) and (text := normal_question(row[name])):
                    bench.texts.add(text)
                    found += 1
            for ref in _refs([row.get(name) for name in columns], path.parent):
                try:
                    digest, shown = image_digest(ref), dhash(ref)
                except BadImage:
                    continue  # MathVista's `image` is a path within a zip; decoded_image is there
                if digest not in bench.images:
                    bench.images.add(digest)
                    hashes.append(shown)
                found += 1
        if not found:
            raise ValueError(f"benchmark {path} has no text and no readable image to compare with")
    if hashes:
        bench.hashes = np.stack(hashes)
    return bench


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(place.rglob("*.parquet"))
    if not found:
        raise ValueError(f"benchmark {place} is a folder without parquet files")
    return found


def _refs(cells: list[Any], base: Path) -> Iterator[ImageRef]:
    for cell in cells:
        try:
            yield from image_refs(cell, base)
        except BadImage:
            continue


def image_digest(ref: ImageRef) -> bytes:
    """16 bytes of a hash of the encoded image. Raises BadImage."""
    try:
        data = Path(ref.path).read_bytes() if ref.data is None else ref.data
    except OSError:
        raise BadImage("image file is missing") from None
    return blake2b(data, digest_size=16).digest()


def dhash(ref: ImageRef) -> np.ndarray:
    """Difference hash -> uint64 [16]: is a place clearly darker than its right neighbour?

    The image is decoded, flattened onto white and averaged to 33 x 32 grey places. Steps of a
    few grey levels count as none: on a plain ground they are noise. Raises BadImage.
    """
    with ref.open() as image:
        image.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG decodes smaller at once
        try:
            if image.mode in ("RGBA", "LA", "PA", "P"):
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            small = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
        except Exception as error:  # PIL raises many kinds for hostile bytes
            raise BadImage(f"image cannot be decoded ({type(error).__name__})") from None
    grey = np.asarray(small, dtype=np.int16)
    darker = grey[:, 1:] - grey[:, :-1] > _FLAT
    return np.packbits(darker).view(np.uint64)


def normal_question(text: str) -> str:
    """What is asked, in lower case, without punctuation, instructions and options."""
    return " ".join(re.findall(r"\w+", bare_question(text).casefold()))
