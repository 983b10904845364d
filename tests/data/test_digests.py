"""A digest of rows changes with anything that training would see, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import random_image, tiny_folder
from PIL import Image

from ovlt.config import DataConfig, ModelConfig
from ovlt.data.digests import rows_digest
from ovlt.data.rows import RowReader
from ovlt.reward.contents import reward_digest
from ovlt.system.digest import file_digest
from ovlt.system.runtime import Runtime


class OneRank(Runtime):
    """A runtime without a process group."""

    def gather_json(self, value: object) -> list[object]:
        return [value]

    def say(self, text: str) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("digests")
    tiny_folder(home / "model")
    rng = np.random.default_rng(4)
    rows = []
    for i in range(6):
        Image.fromarray(random_image(rng, 56, 84)).save(home / f"{i}.png")
        question = f"<image>How many {i}?" + " Why?" * 4 * i
        rows.append({"problem": question, "answer": str(i), "images": [f"{i}.png"]})
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def digest(home: Path, folder: Path, max_tokens: int = 200) -> str:
    from ovlt.model.load import open_folder

    runtime = OneRank(0, 1, torch.device("cpu"), None)  # pyright: ignore[reportArgumentType]
    data = DataConfig(max_bad_share=1.0)
    reader = RowReader(runtime, ModelConfig(), data, open_folder(home / "model"))
    path = str(folder / "rows.jsonl")
    return rows_digest(path, reader.questions(path, max_tokens=max_tokens), runtime, 2)


def edit(change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        lines = (folder / "rows.jsonl").read_text().splitlines()
        (folder / "rows.jsonl").write_text("\n".join(change(lines)) + "\n")

    return apply


def other_picture(folder: Path) -> None:
    """Another one of the same size in bytes: two pixels change places."""
    pixels = np.asarray(Image.open(folder / "3.png")).copy()
    pixels[0, 0], pixels[5, 5] = pixels[5, 5].copy(), pixels[0, 0].copy()
    Image.fromarray(pixels).save(folder / "3.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a row more": edit(lambda lines: [*lines, lines[0]]),
    "a row less": edit(lambda lines: lines[:-1]),
    "reversed": edit(lambda lines: lines[::-1]),
    "an answer": edit(lambda lines: [lines[0].replace('"0"', '"9"'), *lines[1:]]),
    "a picture": other_picture,
    "two pictures change places": lambda f: [
        os.rename(f / "1.png", f / "x"), os.rename(f / "2.png", f / "1.png"),
        os.rename(f / "x", f / "2.png"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_training_sees_changes_it(home: Path, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("model"))
    assert digest(home, folder) == digest(home, home)  # wherever it lies, whenever it was written
    CHANGES[case](folder)
    assert digest(home, folder) != digest(home, home)


def test_a_limit_that_leaves_rows_out_changes_it(home: Path) -> None:
    lengths = {digest(home, home, max_tokens=n) for n in (60, 200, 400)}
    assert len(lengths) == 2


def test_a_long_file_is_sampled_and_its_length_counts(tmp_path: Path) -> None:
    file = tmp_path / "long"
    data = np.random.default_rng(1).bytes(1 << 20)
    file.write_bytes(data)
    before = file_digest(file, whole=1 << 16)
    assert before != file_digest(file)
    for other in (data + b"\n", data[:-1], data[1:] + data[:1], data[: 1 << 19] * 2):
        file.write_bytes(other)
        assert file_digest(file, whole=1 << 16) != before


def test_a_reward_is_its_file_and_what_that_imports(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import helper\nfrom deep import part\ndef f(x): return 1\n")
    (tmp_path / "helper.py").write_text("import math, mine\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("")
    (tmp_path / "deep" / "part.py").write_text("A = 1\n")
    spec = f"{tmp_path}/mine.py:f"
    seen = [reward_digest("answer"), reward_digest(f"{tmp_path}/mine.py:g"), reward_digest(spec)]
    (tmp_path / "unused.py").write_text("x = 1")
    assert reward_digest(spec) == seen[-1]
    for name in ("mine.py", "helper.py", "deep/part.py"):
        file = tmp_path / name
        file.write_text(file.read_text() + "B = 2\n")
        seen.append(reward_digest(spec))
    assert len(set(seen)) == len(seen)
    shutil.copytree(tmp_path, tmp_path / "moved" / "to")
    assert reward_digest(f"{tmp_path}/moved/to/mine.py:f") == seen[-1]
