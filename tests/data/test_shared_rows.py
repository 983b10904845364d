"""SFT rows of one question share its prompt, wherever their images are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny import tiny_folder
from PIL import Image

from ovlt.data.loader import Loader
from ovlt.data.rows import GoodRows
from ovlt.data.sources import Limits, load_conversations
from ovlt.sft import Batches
from ovlt.system.runtime import Runtime


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (84, 84, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row(image: object, answer: str) -> dict[str, object]:
    turns = [("user", "<image>How many shapes are there?"), ("assistant", answer)]
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "images": [image],
    }


@pytest.mark.parametrize("embedded", [True, False], ids=["bytes", "paths"])
def test_traces_of_one_question_share_its_prompt(tmp_path: Path, embedded: bool) -> None:
    folder = tiny_folder(tmp_path / "m")
    for seed in (1, 2):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))

    def image(seed: int, name: str) -> object:
        return {"bytes": png(seed), "path": name} if embedded else f"{seed}.png"

    rows = [
        row(image(1, "a.png"), "There are 3."),
        row(image(2, "b.png"), "There are 2 blue squares."),
        row(image(1, "c.png"), "1 red circle, 2 blue squares."),  # the same image, another name
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    limits = Limits(factor=28, min_pixels=3136, max_pixels=100352, max_tokens=400)
    loaded = load_conversations(tmp_path / "rows.parquet", folder.chat, limits)
    good = GoodRows(loaded.rows, limits)
    runtime = Runtime(0, 1, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]
    loader = Loader(good.sample, 1)
    batches = Batches(good, folder, runtime, loader, token_budget=400, dtype=torch.float32)
    (batch,), planned = batches.make([0, 1, 2])
    loader.close()
    lengths = [len(r.token_ids) for r in good]
    prompt = batch.segments.lengths[0]
    assert batch.segments.prefix == [-1, 0, 0, -1]
    assert planned.tokens == batch.num_tokens == sum(lengths) - prompt
    assert planned.sample_tokens == sum(lengths)
    assert batch.grid_thw is not None
    assert len(batch.grid_thw) == 2
