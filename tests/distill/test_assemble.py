"""What is judged and what is written: answers without tags, and images of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ovlt.config import RewardConfig
from ovlt.data.images import ImageRef, PixelLimits, load_image
from ovlt.data.sources import Row
from ovlt.data.tokens import Tokens
from ovlt.data.writers import SHAREGPT_COLUMNS, write_rows
from ovlt.distill.assemble import sft_row
from ovlt.distill.generate import verify
from ovlt.reward.pool import RewardPool
from ovlt.system.scratch import Scratch
from ovlt.types import Prompt

SIZES = PixelLimits(factor=28, min_pixels=3136, max_pixels=20000)


def row(ref: ImageRef) -> Row:
    tokens = Tokens.of(np.zeros(1, np.int32), None, Scratch())
    return Row("a/b", "s", "", "<image>What?", "2", tokens, (ref,), ((1, 2, 2),))


@pytest.mark.parametrize("kind", ["a photograph held upright", "four inks"])
def test_the_image_that_is_learned_is_the_one_that_was_seen(kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (61, 95, 3), dtype=np.uint8)
    image, more = Image.fromarray(pixels), {}
    if kind == "four inks":
        image = image.convert("CMYK")
    else:
        more["exif"] = Image.Exif()
        more["exif"][0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "x.jpg", **more)
    ref = ImageRef(str(tmp_path / "x.jpg"))
    write_rows([sft_row(row(ref), "t", " Go.")], tmp_path / "rows.parquet", SHAREGPT_COLUMNS)
    [written] = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert written["messages"][0]["content"] == "<image>What? Go."
    [cell] = written["images"]
    seen = load_image(ref, SIZES)
    assert np.array_equal(load_image(ImageRef(data=cell["bytes"]), SIZES), seen)
    assert (seen.shape[0] > seen.shape[1]) == (kind != "four inks")


RIGHT = {
    "tags": "<think>so</think> It is two. <answer>2</answer>",
    "no summary": "<think>so</think><answer>2</answer>",
    "tags named while thinking": "<think>in <answer></answer> then</think> <answer>2</answer>",
    "boxed": "<think>so</think> It is \\boxed{2}.",
    "boxed, tags named while thinking": "put it in <answer></answer></think> \\boxed{2}",
}
WRONG = {
    "other": "<think>so</think> <answer>3</answer>",
    "boxed other": "<think>\\boxed{2}?</think> \\boxed{3}",
    "boxed while thinking": "<think>\\boxed{2}",
    "tags go first": "<think>so</think> <answer>3</answer> \\boxed{2}",
}


@pytest.mark.parametrize("function", ["answer", "released"])
def test_a_trace_is_judged_by_its_last_answer_whatever_the_reward(function: str) -> None:
    config = RewardConfig(function=function, verdict="answer", workers=1)
    texts = [*RIGHT.values(), *WRONG.values()]
    record = {"index": 3, "texts": texts}
    prompt = Prompt("x", "s", "<image>What?", "2", np.zeros(1, np.int64))
    with RewardPool(config, for_verdicts=True) as pool:
        [judged] = verify(pool, [record], {3: prompt})
    assert dict(zip([*RIGHT, *WRONG], judged["scores"], strict=True)) == (
        dict.fromkeys(RIGHT, 1.0) | dict.fromkeys(WRONG, 0.0)
    )
    assert record["texts"] == texts


def test_points_for_the_form_are_no_verdict_on_the_answer() -> None:
    prompt = Prompt("x", "s", "<image>What?", "2", np.zeros(1, np.int64))
    record = {"index": 0, "texts": [RIGHT["no summary"]]}
    with RewardPool(RewardConfig(function="released", workers=1), for_verdicts=True) as pool:
        [judged] = verify(pool, [record], {0: prompt})
    assert judged["scores"] == [1.0]
    assert judged["reasons"][0].endswith("no summary")
