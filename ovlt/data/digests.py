"""What a file of rows holds, in one digest: a run is its rows, not the path of their file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from ovlt.data.rows import GoodRows
from ovlt.system.digest import digest_of, file_digest, tree_digest
from ovlt.system.hub import is_hub_name
from ovlt.system.runtime import Runtime

_IMAGE_BYTES = 1 << 20  # larger images are sampled


def rows_digest(path: str, rows: GoodRows, runtime: Runtime, workers: int) -> str:
    """Return a digest of a file (or folder) of rows and of the images that it names. Collective.

    The number of good rows is part of it: a limit that leaves out other rows makes another run.
    Each rank reads its share of the images, the same on any number of ranks.
    """
    place = Path(path)
    if not place.exists() and ":" in path and not is_hub_name(path):  # folder:split
        place = Path(path.rpartition(":")[0])
    # On one rank, whose digest is the one that is compared; of a name on the Hub it is the name.
    contents = tree_digest(place) if runtime.is_main and place.exists() else path
    images = list(_image_files(rows))
    mine = range(runtime.rank, len(images), runtime.world_size)
    with ThreadPoolExecutor(workers) as pool:
        # A sum of digests that know their place: ranks send one number, in any order.
        part = sum(pool.map(lambda at: _of_image(at, images[at]), mine)) % (1 << 128)
    total = sum(runtime.gather_json(part)) % (1 << 128)
    return digest_of([contents, str(len(rows)), str(len(images)), str(total)])


def _image_files(rows: GoodRows) -> Iterator[str]:
    """Yield the path of every image that is a file of its own; others are in the rows' file."""
    for row in rows:
        for image in row.images:
            if image.in_file and Path(image.path).is_file():
                yield image.path


def _of_image(at: int, path: str) -> int:
    digest = file_digest(Path(path), _IMAGE_BYTES)
    return int.from_bytes(blake2b(f"{at} {digest}".encode(), digest_size=16).digest(), "little")
