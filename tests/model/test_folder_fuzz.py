"""Model folders with random damage: opened, or refused in a sentence that names the folder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.tiny import tiny_folder

from ovlt.model.load import open_folder, open_text_model

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2.5, 1e30, 2**40, "", "x", "<|im_end|>", [], [1, 2], ["x"], {},
    {"a": 1}, [{"role": 1}],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON, as keys; long lists only at their start."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:4])
    for key, item in list(items)[:60]:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def damage(folder: Path, rng: random.Random) -> str:
    """Change one thing of one file; return what."""
    file = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    how = rng.choice(["value", "value", "value", "key", "cut", "bytes", "gone", "folder"])
    if file.suffix != ".json" and how in ("value", "key"):
        how = "bytes"
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif how == "bytes":
        at = rng.randrange(min(len(data), 2000))
        file.write_bytes(data[:at] + rng.randbytes(3) + data[at + 3 :])
    else:
        tree = json.loads(data)
        *parents, last = rng.choice(list(places(tree)))
        node = tree
        for key in parents:
            node = node[key]
        if how == "key":
            del node[last]
        else:
            node[last] = rng.choice(VALUES)
        file.write_text(json.dumps(tree))
        how = f"{how} of {(*parents, last)}"
    return f"{file.name}: {how}"


def test_damaged_folders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = tiny_folder(tmp_path / "whole").path
    rng, refused = random.Random(6), 0
    for number in range(150):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        what = damage(folder, rng)
        opening = rng.choice([open_folder, open_folder, open_text_model])
        sentence = ""
        try:
            opening(folder)
        except ValueError as error:
            sentence = str(error)
        except Exception as error:
            raise AssertionError(what) from error
        refused += bool(sentence)
        assert not sentence or str(folder) in sentence, (what, sentence)
        assert len(sentence) < 1500, what
        shutil.rmtree(folder)
    assert refused > 50
