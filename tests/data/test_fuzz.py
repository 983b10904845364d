"""Rows, files and images at random: a right reading or a ValueError that says where, never else."""

from __future__ import annotations

import base64
import contextlib
import json
import string
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.row_forms import Spelling, png, write_text
from helpers.tiny import tiny_folder

from ovlt.data.mixture.overlap import load_benchmark
from ovlt.data.readers import read
from ovlt.data.sources import (
    Limits,
    bad_images,
    load_conversations,
    load_questions,
    to_prompt,
)
from ovlt.model.chat import Chat

LIMITS = Limits(factor=28, min_pixels=3136, max_pixels=100352, max_tokens=500)
NAMES = (
    "problem", "answer", "images", "image", "messages", "conversations", "system", "question",
    "prompt", "response", "instruction", "output", "input", "history", "videos", "audio", "tools",
    "loss", "weight", "id", "source", "kind", "choices", "options", "solution", "ground_truth",
    "reward_model", "data_source", "decoded_image", "image_1", "image_2", "image_path", "extra",
    "Image", "", " ", "ä", "chat", "turns", "texts", "pass_rate", "file_name", "difficulty",
)  # fmt: skip
WORDS = (
    "", " ", "<image>", "<image><image>", "<|im_end|>", "3", "A", "1.png", "no.png", "user",
    "http://a/b.png", "data:image/png;base64,", "data:,", "data:image/png;base64,iVBORw0KGgo=",
    "\0", "\ud800", "assistant", "human", "gpt", "system", "[", "{}", "[]", '[{"role": 1}]',
    "null", "x" * 5000, "..", "/", "/etc", "/dev/null", "file:///etc/passwd", "file://[", "//", "~",
    "C:\\a\\1.png", "<answer>3</answer>", "ftp://x", "a" * 300 + ".png", "%00", "file://%00",
)  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return tiny_folder(tmp_path_factory.mktemp("fuzz") / "model").chat


def value(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(9 if depth < 4 else 5)
    if kind < 3:
        return random.choice(WORDS)
    if kind == 3:
        return random.choice([None, True, False, 0, 1, -1, 0.5, 1e308, float("nan"), 10**25])
    if kind == 4:
        return "".join(random.choices(string.printable + "ü½中", k=random.randint(0, 30)))
    if kind == 5:
        return [value(random, depth + 1) for _ in range(random.randint(0, 3))]
    if kind == 6:
        keys = ("role", "content", "from", "value", "type", "text", "image", "image_url", "url")
        keys += ("bytes", "path", "weight", "loss", "user", "assistant", "data", "source")
        return {random.choice(keys): value(random, depth + 1) for _ in range(random.randint(0, 4))}
    if kind == 7:
        roles = random.choices(["user", "assistant", "human", "gpt", "system", "tool"], k=3)
        return [{"role": role, "content": value(random, depth + 2)} for role in roles]
    return {"type": random.choice(["text", "image", "video", ""]), "text": value(random, 9)}


def row(random: Random) -> Any:
    if random.random() < 0.05:
        return value(random)
    good: dict[str, Any] = {"problem": "How many?", "answer": "3"}
    if random.random() < 0.5:
        good = {
            "messages": [
                {"role": "user", "content": "How many?"},
                {"role": "assistant", "content": "3"},
            ]
        }
    for _ in range(random.randint(0, 3)):
        good[random.choice(NAMES)] = value(random)
    for _ in range(random.randint(0, 1)):
        good.pop(random.choice(list(good)))
    return good


def read_all(path: Path, chat: Chat) -> int:
    """Read a file in every way; return how many rows were good."""
    count = 0
    for load in (load_questions, load_conversations):
        rows = None
        with suppressed_if_it_names(str(path)):
            rows = load(path, chat, LIMITS)
            rows.require(0)
        if rows is None:
            continue
        bad = bad_images(rows.rows, LIMITS, 2)
        for index, good in enumerate(rows.rows):
            if index not in bad:
                prompt = to_prompt(good, LIMITS)
                json.dumps(prompt.extra)
                assert len(prompt.images) == len(good.grids)
                placeholders = int((prompt.token_ids == chat.image_id).sum())
                assert placeholders == sum(h * w // 4 for _, h, w in good.grids)
                count += 1
    for use in (lambda: list(read("questions", path)), lambda: load_benchmark([path])):
        with suppressed_if_it_names(path.name):
            use()
    return count


@contextlib.contextmanager
def suppressed_if_it_names(place: str) -> Iterator[None]:
    """Suppress a ValueError whose message says where."""
    try:
        yield
    except ValueError as error:
        if place not in str(error):
            raise


@pytest.mark.parametrize("seed", range(12))
def test_rows_at_random_end_in_no_traceback(tmp_path: Path, chat: Chat, seed: int) -> None:
    random = Random(f"rows {seed}")
    (tmp_path / "1.png").write_bytes(png(1))
    count = 0
    for number in range(10):
        rows = [row(random) for _ in range(random.randint(1, 12))]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "1.png").write_bytes(png(1))
        count += read_all(written(random, folder, rows), chat)
    assert count > 4


def written(random: Random, folder: Path, rows: list[Any]) -> Path:
    """Write rows as JSON or, if a table can hold them, as parquet."""
    try:
        if random.random() < 0.4:
            table = pa.Table.from_pylist([r for r in rows if isinstance(r, dict)])
            pq.write_table(table, folder / "rows.parquet")
            return folder / "rows.parquet"
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError, ValueError):
        pass
    try:
        return write_text(random, folder, rows)
    except UnicodeEncodeError:
        path = folder / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path


@pytest.mark.parametrize("seed", range(6))
def test_files_bent_at_random_end_in_no_traceback(tmp_path: Path, chat: Chat, seed: int) -> None:
    """Cut, overwritten, doubled and renamed files of each kind."""
    random = Random(f"files {seed}")
    spell = Spelling(random, tmp_path)
    for number in range(14):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [
            {"problem": f"{i}?", "answer": "3", "images": [spell.image(binary=True)[1]], "n": i}
            for i in range(5)
        ]
        text = [
            {**r, "images": [f"data:image/png;base64,{b64(png(i))}"]} for i, r in enumerate(rows)
        ]
        path = folder / "rows.parquet"
        kind = random.randrange(3)
        if kind == 0:
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif kind == 1:
            path = folder / "rows.arrow"
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
        else:
            path = write_text(random, folder, text)
        data = bytearray(path.read_bytes())
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(data))
            bend = random.randrange(4)
            if bend == 0:
                del data[at:]
            elif bend == 1:
                data[at : at + 20] = random.randbytes(random.randint(0, 20))
            elif bend == 2:
                data += data[at:]
            else:
                data[at:at] = b"\0"
            data = data or bytearray(b"x")
        path = path.with_suffix(random.choice([".json", ".jsonl", ".parquet", ".arrow", ""]))
        path.write_bytes(bytes(data))
        read_all(path, chat)


@pytest.mark.parametrize("seed", range(6))
def test_images_bent_at_random_end_in_no_traceback(tmp_path: Path, chat: Chat, seed: int) -> None:
    random = Random(f"images {seed}")
    rows = []
    for number in range(12):
        data = bytearray(png(number))
        for _ in range(random.randint(0, 4)):
            at = random.randrange(len(data))
            data[at : at + random.randint(0, 9)] = random.randbytes(random.randint(0, 9))
        if random.random() < 0.2:
            del data[random.randrange(len(data)) :]
        form: Any = f"data:image/png;base64,{b64(bytes(data))}"
        if random.random() < 0.5:
            (tmp_path / f"{number}.png").write_bytes(bytes(data))
            form = f"{number}.png"
        rows.append({"problem": "?", "answer": "3", "image": form})
    read_all(write_text(random, tmp_path, rows), chat)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
