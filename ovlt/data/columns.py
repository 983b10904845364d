"""What the columns of a row mean: taken by name, and refused by name if they look meant.

A column that ovlt reads is taken; one that says something about how the row is to be shown or
learned, and that ovlt cannot obey, makes the row bad; every other one goes to the reward as it is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ovlt.data.column_tables import json_value
from ovlt.data.image_forms import holds_image, image_refs, names_image
from ovlt.data.image_refs import ImageRef
from ovlt.data.row_table import BadRow

# Columns of images; the first names are the ones to use. The second list says where an image came
# from if the first has it, and is the image otherwise.
IMAGES = (
    "images", "image", "decoded_image", "decoded_images", "img", "imgs", "picture",
    "pictures", "photo", "photos",
)  # fmt: skip
IMAGE_PLACES = (
    "image_path", "image_paths", "image_file", "image_files", "img_path", "img_paths",
    "image_url", "image_urls", "file_name",
)  # fmt: skip
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
SYSTEM = ("system", "system_prompt", "system_message", "sys_prompt")
_NUMBERED = re.compile(r"(?:decoded_)?image_?(\d+)")
_MEDIA = re.compile(
    r"(?:video|audio|speech|sound|voice|music|waveform|clip|movie)s?"
    r"(?:_?(?:path|file|url|byte|data|frame)s?)?|frames?|pixel_values"
)
# A weight of a row, or a choice of the tokens that are learned. 1 is what happens anyway.
_WEIGHTS = ("loss", "loss_weight", "loss_scale", "weight", "weights", "sample_weight", "train")
_REFUSED = ("tools", "functions", "chat_template_kwargs")
_KNOWN = (*IMAGES[:2], *CONVERSATIONS[:2], "system", "videos", "audios", "tools")


class Columns:
    """The columns of one row, by name without regard to case; what is taken is not left over."""

    def __init__(self, raw: Mapping[str, object], ignore: Collection[str] = ()):
        self._names: dict[str, str] = {}  # the name that is looked for -> the row's own
        self._raw = {name: value for name, value in raw.items() if name not in ignore}
        for name in self._raw:
            plain = re.sub(r"[\s-]+", "_", name.strip().casefold())
            if plain in self._names:
                raise BadRow(f"columns '{self._names[plain]}' and '{name}' are one but for case")
            self._names[plain] = name
        self._left = dict(self._names)

    @property
    def listing(self) -> str:
        """The names of the columns, for a message."""
        names = ", ".join(str(name)[:40] for name in list(self._raw)[:12])
        return f"its columns are {names or 'none'}"

    def has(self, name: str) -> bool:
        """Whether a column is there and not empty."""
        return name in self._names and not _is_empty(self._raw[self._names[name]])

    def peek(self, name: str) -> object:
        """Return the value of a column, None if there is none."""
        return self._raw[self._names[name]] if name in self._names else None

    def take(self, *names: str) -> object:
        """Return the value of the first of these columns that is not empty; it counts as read."""
        for name in names:
            if self.has(name):
                self._left.pop(name, None)
                return self.peek(name)
        for name in names:
            if name in self._names:
                self._left.pop(name, None)
        return None

    def drop(self, *names: str) -> None:
        """Count columns as read."""
        for name in names:
            self._left.pop(name, None)

    def one_of(self, names: Sequence[str], what: str) -> str:
        """Return which of these columns is given, "" if none. Raises BadRow if several differ."""
        given = [name for name in names if self.has(name)]
        if len(given) > 1 and any(self.peek(name) != self.peek(given[0]) for name in given):
            pair = " and ".join(f"'{self._names[name]}'" for name in given[:2])
            raise BadRow(f"columns {pair} both hold {what}: leave one out (data.ignore)")
        self.drop(*given)
        return given[0] if given else ""

    def images(self, base: Path) -> tuple[ImageRef, ...]:
        """Take the images, whichever columns hold them. Raises BadRow and BadImage."""
        if self.has("decoded_image"):  # MathVista's: `image` is its name in an archive
            self.drop("image")
            names = [name for name in IMAGES if name != "image"]
        else:
            names = list(IMAGES)
        numbered = sorted((int(m[1]), n) for n in self._names if (m := _NUMBERED.fullmatch(n)))
        single = self.one_of(names, "images")
        several = [name for _, name in numbered if self.has(name)]
        if single and several:
            raise BadRow(
                f"columns '{self._names[single]}' and '{self._names[several[0]]}' both hold "
                "images: leave one out (data.ignore)"
            )
        if not single and not several:
            places = [name for name in IMAGE_PLACES if self.has(name)]
            single = next((n for n in places if n != "file_name" or names_image(self.peek(n))), "")
        for name in (*names, *(name for _, name in numbered), *([single] * bool(single))):
            self.drop(name)
        if several:
            return tuple(ref for name in several for ref in image_refs(self.peek(name), base))
        value = self.peek(single) if single else None
        return () if _is_empty(value) else image_refs(value, base)

    def system(self) -> str:
        """Take the system prompt, "" if there is none. Raises BadRow."""
        name = self.one_of(SYSTEM, "a system prompt")
        value = self.peek(name) if name else ""
        if not isinstance(value, str):
            raise BadRow(f"column '{self._names[name]}' is no text")
        self.drop(*SYSTEM)
        return value

    def refuse_meant(self, num_images: int, extra: Sequence[str] = ()) -> None:
        """Raise BadRow for a column that is left, not empty, and looks meant.

        ``extra`` names more columns that would be, in this kind of row.
        """
        for plain, name in self._left.items():
            value = self._raw[name]
            if _is_empty(value):
                continue
            if _MEDIA.fullmatch(plain):
                raise BadRow(f"column '{name}' is not read: ovlt shows a model images only")
            if plain in _WEIGHTS and not _is_one(value):
                raise BadRow(f"column '{name}' is not read: every row counts alike (data.ignore)")
            if plain in _REFUSED or plain in extra:
                raise BadRow(f"column '{name}' is not read: leave it out (data.ignore)")
            if holds_image(value) or (not num_images and names_image(value)):
                raise BadRow(f"column '{name}' holds images and is not read: call it 'images'")
            near = difflib.get_close_matches(plain, _KNOWN, n=1, cutoff=0.82)
            seen = near and (near[0] in self._names or (num_images and near[0] in IMAGES))
            if near and not seen and not plain.endswith("id"):
                raise BadRow(f"column '{name}' is not read: is it '{near[0]}'?")

    def extra(self) -> dict[str, object]:
        """Return the columns that are left, as JSON values."""
        return {name: json_value(self._raw[name]) for name in self._left.values()}


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip() in ("[]", "{}", "null")
    if isinstance(value, dict):  # a struct of parquet whose cell is empty has fields of null
        return all(inner is None for inner in value.values())
    return value is None or (isinstance(value, list) and not value)


def _is_one(value: object) -> bool:
    return isinstance(value, bool | int | float) and value == 1
