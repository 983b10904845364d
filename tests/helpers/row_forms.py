"""Rows in the forms that datasets have, generated: the same content spelled in many ways."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.tiny import random_image
from PIL import Image
from pyarrow import ipc


def png(seed: int, height: int = 56, width: int = 84) -> bytes:
    """Return a random image."""
    buffer = io.BytesIO()
    Image.fromarray(random_image(np.random.default_rng(seed), height, width)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Spelling:
    """Spells images and turns at random, and writes files of images into ``folder``."""

    random: Random
    folder: Path
    count: int = 0

    def __post_init__(self) -> None:
        self.bare_bytes = self.random.random() < 0.5  # a column of parquet has one type

    def image(self, *, binary: bool) -> tuple[bytes, Any]:
        """Return the bytes of a new image, and a form of it: JSON cannot hold ``binary`` ones."""
        self.count += 1
        data = png(self.count, 28 * self.random.randint(2, 3), 28 * self.random.randint(2, 4))
        name = f"pictures/{self.count} ü.png"
        text = base64.b64encode(data).decode()
        forms: list[Callable[[], Any]] = [
            lambda: self._file(name, data),
            lambda: {"path": self._file(name, data), "bytes": None},
            lambda: str(self.folder / self._file(name, data)),
            lambda: "file://" + str(self.folder / self._file(f"{self.count}.png", data)),
            lambda: self._file(name, data).replace("/", "\\"),
            lambda: f"data:image/png;base64,{text}",
            lambda: {"url": f"data:image/png;base64,{text}"},
            lambda: text,
            lambda: {"bytes": text, "path": "x.png"},
        ]
        if binary:
            return data, data if self.bare_bytes else {"bytes": data, "path": None}
        return data, self.random.choice(forms)()

    def _file(self, name: str, data: bytes) -> str:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        return name

    def role(self, role: str) -> str:
        """Return another name of a role."""
        names = {
            "user": ["user", "human", "User", "HUMAN"],
            "assistant": ["assistant", "gpt", "Assistant", "model", "bot"],
            "system": ["system", "System"],
        }
        return self.random.choice(names[role])

    def turns(self, turns: Sequence[tuple[str, str]], images: Sequence[Any]) -> tuple[Any, bool]:
        """Return a conversation in some form, and whether its images stand within it."""
        keys = self.random.choice([("role", "content"), ("from", "value"), ("from", "content")])
        left = list(images)
        kind = self.random.choice(["text", "parts", "inline"] if keys[1] == "content" else ["text"])
        kind = "text" if kind == "inline" and not images else kind
        result: list[dict[str, Any]] = []
        for role, text in turns:
            content: Any = text
            if kind != "text":
                content = []
                for number, piece in enumerate(text.split("<image>")):
                    if number:
                        content.append(self._part(left.pop(0) if kind == "inline" else None))
                    if piece:
                        content.append({"type": "text", "text": piece})
            result.append({keys[0]: self.role(role), keys[1]: content})
        form: Any = result
        if self.random.random() < 0.2:
            form = json.dumps(result)
        elif self.random.random() < 0.2:
            form = {key: [turn[key] for turn in result] for key in keys}
        return form, kind == "inline"

    def _part(self, image: Any) -> dict[str, Any]:
        if image is None:
            return {"type": "image"}
        if isinstance(image, str) and image.startswith("data:"):
            return self.random.choice(
                [
                    {"type": "image_url", "image_url": {"url": image, "detail": "high"}},
                    {"type": "input_image", "image_url": image},
                    {"type": "image", "source": {"type": "base64", "data": image.split(",")[1]}},
                ]
            )
        key = self.random.choice(["image", "image_url", "url", "path"])
        if isinstance(image, dict):
            key = self.random.choice(["image", "image_url"])
        return {"type": "image", key: image}


def write_text(random: Random, folder: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON in a layout, an encoding and under a name that is drawn."""
    suffix = random.choice([".json", ".jsonl", ".txt", ""])
    path = folder / f"rows{suffix}"
    layout = random.choice(["lines", "list", "indented list", "indented objects"])
    if layout == "lines":
        text = "\n".join(json.dumps(row) for row in rows) + "\n" * random.randint(0, 2)
    elif layout == "list":
        text = json.dumps(rows)
    elif layout == "indented list":
        text = json.dumps(rows, indent=2, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row, indent=1) for row in rows)
    if random.random() < 0.4:
        text = text.replace("\n", "\r\n")
    encoding = random.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])
    if encoding == "utf-16" and layout == "indented objects":
        encoding = "utf-8-sig"
    path.write_bytes(text.encode(encoding))
    return path


def write_columns(random: Random, folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as parquet or Arrow."""
    table = pa.Table.from_pylist(list(rows))
    kind = random.choice(["parquet", "groups", "stream", "feather"])
    path = folder / ("rows.parquet" if kind in ("parquet", "groups") else "rows.arrow")
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2 if kind == "groups" else None)
        return path
    opened = ipc.new_stream if kind == "stream" else ipc.new_file
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path
