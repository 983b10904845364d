"""Images that a reward of one's own can open: the row's files, or PNG files of the pixels."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from ovlt.types import Prompt


class ImageFiles:
    """A temporary folder with the images that came as bytes, one file for each different image."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def paths(self, prompt: Prompt) -> tuple[str, ...]:
        """Return the absolute path of a readable file for each image of a prompt.

        An image that came as bytes is written as the model sees it: upright and resized.
        """
        paths = prompt.image_paths
        if len(paths) == len(prompt.images) and all(
            path and os.path.isfile(path) for path in paths
        ):
            return tuple(os.path.abspath(path) for path in paths)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ovlt_reward_images_")
        files = []
        for array in prompt.images:
            digest = hashlib.sha256(array.tobytes() + str(array.shape).encode()).hexdigest()
            file = Path(self._folder.name, f"{digest[:32]}.png")
            if not file.exists():
                Image.fromarray(array).save(file, compress_level=1)
            files.append(str(file))
        return tuple(files)

    def clear(self) -> None:
        """Delete the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
