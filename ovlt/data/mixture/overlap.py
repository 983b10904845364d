"""Does a training question come from a benchmark? By its image, and by its text.

455 of MathVista's 1,000 testmini questions come from sources that are trained on. A benchmark's
copy of an image is often encoded anew, so comparing bytes does not suffice: ``dhash`` compares what
is visible. Templates repeat over many images ("Is X the minimum?"), so a text alone counts only if
it is long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from ovlt.data.image_forms import image_refs
from ovlt.data.image_refs import BadImage, ImageRef
from ovlt.data.readers.conversations import bare_question
from ovlt.data.tables import column_names, read_table

MIN_WORDS = 12  # a shorter question is a template that many images share
SIDE = 32  # the hash compares 32 x 32 neighbours: 1024 bits
# Measured on 90 images of each synthetic image family, encoded anew in four ways (JPEG, from half
# to 1.5 times the size). Bits that differ: median 1 to 3 for four families, 10 for tables, 20 for
# maps, at most 53. Of pairs of different images, 0 to 0.15 % differ in at most 4 bits. Different
# line drawings and tables come within 48, which therefore counts only with the same question.
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
    # uint64 [images, 16], as `dhash` gives them
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, _WORDS), np.uint64))
    texts: set[str] = field(default_factory=set)  # as normal_question gives them
    bits: int = BITS

    def overlap(self, problem: str, shown: Sequence[Shown]) -> str:
        """Return why a question belongs to the benchmark; "" if it does not.

        The reasons, in this order: an image has the same bytes; its hash differs in at most
        ``bits`` of 1024; it differs in at most 48 and the question is the same; the question is
        the same and has at least 12 words.
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
    """The features of an image that are compared."""

    digest: bytes
    hash: np.ndarray | None = None  # uint64 [16]; None if no benchmark has images


def load_benchmark(paths: Sequence[str | Path], bits: int = BITS) -> Benchmark:
    """Index benchmark files: parquet, JSON or JSONL, or the parquet files of folders.

    They have a text column (question, query, problem) or image columns (image, decoded_image,
    images, image_1 ...). Raises ValueError: no file, no such column, or nothing in it that can be
    compared with.
    """
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
        usable = False
        for row in read_table(path, [*texts, *columns]):
            if not isinstance(row, dict):
                continue
            questions = _questions(row.get(name) for name in texts)
            bench.texts.update(questions)
            usable |= bool(questions)
            for image in _images([row.get(name) for name in columns], path.parent):
                usable = True
                if image.digest not in bench.images:
                    bench.images.add(image.digest)
                    assert image.hash is not None
                    hashes.append(image.hash)
        if not usable:
            raise ValueError(f"benchmark {path} has no text and no readable image to compare with")
    if hashes:
        bench.hashes = np.stack(hashes)
    return bench


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    files = sorted(place.rglob("*.parquet"))
    if not files:
        raise ValueError(f"benchmark {place} is a folder without parquet files")
    return files


def _questions(cells: Iterable[object]) -> list[str]:
    texts = [normal_question(cell) for cell in cells if isinstance(cell, str)]
    return [text for text in texts if text]


def _images(cells: Iterable[object], base: Path) -> Iterator[Shown]:
    """Yield the images that can be read."""
    for cell in cells:
        try:
            refs = image_refs(cell, base)
        except BadImage:
            continue
        for ref in refs:
            try:
                yield Shown(image_digest(ref), dhash(ref))
            except BadImage:
                continue  # MathVista's `image` is a path within a zip; decoded_image is there


def image_digest(ref: ImageRef) -> bytes:
    """Return 16 bytes of a hash of the encoded image. Raises BadImage."""
    return blake2b(ref.read(), digest_size=16).digest()


def dhash(ref: ImageRef) -> np.ndarray:
    """Return the difference hash of an image, uint64 [16]. Raises BadImage.

    The image is decoded, flattened onto white and averaged to 33 x 32 grey places; a bit says
    whether a place is clearly lighter than its left neighbour. Steps of a few grey levels count as
    none: on a plain ground they are noise.
    """
    with ref.open() as image:
        image.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG is decoded small, which is faster
        try:
            if image.mode in ("RGBA", "LA", "PA", "P"):
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            small = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
        except Exception as error:  # PIL raises many kinds for hostile bytes
            raise BadImage(f"image cannot be decoded ({type(error).__name__})") from None
    grey = np.asarray(small, dtype=np.int16)
    lighter = grey[:, 1:] - grey[:, :-1] > _FLAT  # [32, 32]
    return np.packbits(lighter).view(np.uint64)


def normal_question(text: str) -> str:
    """Return the question in lower case, without punctuation, instructions and options."""
    return " ".join(re.findall(r"\w+", bare_question(text).casefold()))
