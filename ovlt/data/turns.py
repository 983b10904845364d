"""The turns of a conversation, whatever a dataset calls them and however it holds their content.

Roles and content (OpenAI), from and value (sharegpt, LLaVA), a list of parts with images between
the texts, pairs of a question and a reply, the same as a text of JSON or as columns of a struct.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ovlt.data.image_forms import HOLDERS, image_refs
from ovlt.data.image_refs import ImageRef
from ovlt.data.row_table import BadRow
from ovlt.model.chat import IMAGE_TAG

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "ai": "assistant", "answer": "assistant", "chatbot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_ROLE_KEYS, _TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "message")
# Whether a turn is learned: axolotl's `train`, OpenAI's and Mistral's `weight`, ms-swift's `loss`.
_LEARNED = ("train", "training", "trainable", "loss", "weight", "loss_weight", "loss_scale")
_TEXT_PARTS = {"text", "input_text", "output_text"}
_IMAGE_PARTS = {"image", "image_url", "input_image", "image_pil", "image_file"}
# Fields of a turn or a part that say nothing about what is to be shown or learned.
_OF_NO_MATTER = {"name", "id", "detail", "cache_control", "type", "media_type", "thumbnail"}
_SHAPELESS = "a message lacks a known role or a text content"
_MEANT = re.compile(
    r"tool|function|reason|think|audio|video|speech|mask|loss|weight|train|refusal|prefix|prefill"
    r"|(?:min|max)_pixels|resized|fps|nframes|^index$"
)


class Turn(NamedTuple):
    """One message. ``text`` has an ``<image>`` for each of its images."""

    role: str  # system, user or assistant
    text: str
    learned: bool = True  # an assistant's turn that the loss covers

    @property
    def message(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        return {"role": self.role, "content": self.text}


class Dialogue(NamedTuple):
    """The turns of a conversation, and the images that stand within them, in order."""

    turns: list[Turn]
    images: list[ImageRef]


def read_dialogue(value: object, base: Path) -> Dialogue | None:
    """Return the conversation in a cell; None if it is no list of turns. Raises BadRow, BadImage.

    Paths of images are relative to ``base``.
    """
    messages = _as_list(value)
    if not messages:
        return None
    result = Dialogue([], [])
    for message in messages:
        for single in _split_pair(message):
            result.turns.append(_turn(single, base, result.images))
    return result


def _as_list(value: object) -> list[object]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, dict):  # columns of a struct: {"role": [...], "content": [...]}
        columns = {name: cell for name, cell in value.items() if cell is not None}
        if not columns or not all(isinstance(cell, list) for cell in columns.values()):
            return []
        if len({len(cell) for cell in columns.values()}) > 1:
            raise BadRow("roles and contents of a conversation are not equally many")
        return [
            dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)
        ]
    return value if isinstance(value, list) else []


def _split_pair(message: object) -> list[Mapping[str, object]]:
    """Return the turn of a message, or the two of a pair of question and reply."""
    if isinstance(message, list) and len(message) == 2:
        message = {"user": message[0], "assistant": message[1]}
    if not isinstance(message, dict):
        raise BadRow(_SHAPELESS)
    if _first(message, _ROLE_KEYS) is None and {"user", "assistant"} <= message.keys():
        return [{"role": role, "content": message[role]} for role in ("user", "assistant")]
    return [_filled(message)]


def _filled(values: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that hold something; a struct of parquet has all fields, some of null."""
    return {
        str(key): value
        for key, value in values.items()
        if value is not None
        and not (isinstance(value, dict) and all(inner is None for inner in value.values()))
    }


def _first(values: Mapping[str, object], keys: Sequence[str]) -> object:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _turn(message: Mapping[str, object], base: Path, images: list[ImageRef]) -> Turn:
    name = _first(message, _ROLE_KEYS)
    if not isinstance(name, str):
        raise BadRow(_SHAPELESS)
    role = ROLES.get(name.strip().casefold())
    if role is None:
        raise BadRow(f"turns of role '{name[:40]}' are not read, only system, user and assistant")
    beside = [message[key] for key in ("images", "image") if message.get(key)]
    own = [ref for value in beside for ref in image_refs(value, base)]
    inner: list[ImageRef] = []
    text = part_text(_first(message, _TEXT_KEYS), base, inner)
    if own and inner:
        raise BadRow("a turn has images both in its parts and beside them")
    if own and IMAGE_TAG not in text:  # they stand in front of its text
        text = IMAGE_TAG * len(own) + text
    images += own or inner
    learned = _is_learned(message, role)
    known = {*_ROLE_KEYS, *_TEXT_KEYS, *_LEARNED, "image", "images"}
    _refuse_meant({k: v for k, v in message.items() if k not in known}, "a turn")
    return Turn(role, text, learned)


def _is_learned(message: Mapping[str, object], role: str) -> bool:
    for key in _LEARNED:
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise BadRow(f"'{key}' of a turn is neither 0 nor 1: a turn is learned or it is not")
        if role != "assistant" and value:
            if key != "train" and not isinstance(value, bool):
                continue  # a weight of 1 on every turn says nothing
            raise BadRow(f"'{key}' of a {role} turn is true, but only the assistant's are learned")
        if role == "assistant" and not value:
            return False
    return True


def part_text(content: object, base: Path, images: list[ImageRef]) -> str:
    """Return a content as text with image tags, and append the images in it. Raises BadRow."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise BadRow(_SHAPELESS)
    return "".join(_part(part, base, images) for part in content)


def _part(part: object, base: Path, images: list[ImageRef]) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRow("a part of a message is neither text nor image")
    values = _filled(part)
    kind = str(values.get("type") or ("text" if "text" in values else "image"))
    if kind in _TEXT_PARTS and isinstance(values.get("text"), str):
        _refuse_meant({k: v for k, v in values.items() if k != "text"}, "a part")
        return str(values["text"])
    if kind not in _IMAGE_PARTS:
        raise BadRow(f"a part of type '{kind[:40]}' is not read: parts are text or images")
    holder = {k: v for k, v in values.items() if k in HOLDERS}
    _refuse_meant({k: v for k, v in values.items() if k not in HOLDERS}, "a part")
    if holder:  # without one, the image is the next of the row's column
        images.extend(image_refs(holder, base))
    return IMAGE_TAG


def _refuse_meant(values: Mapping[str, object], where: str) -> None:
    for key, value in values.items():
        if key not in _OF_NO_MATTER and value not in (None, "", [], {}) and _MEANT.search(key):
            raise BadRow(f"'{key[:40]}' of {where} is not read: leave it out")
