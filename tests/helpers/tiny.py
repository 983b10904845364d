"""Small real model folders and samples, shared by tests. Seeded, odd-sized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ovlt.config import BaseConfig
from ovlt.model.load import ModelFolder, open_folder
from ovlt.smoke.base import make_folder
from ovlt.types import Prompt, Sample

CORPUS = [
    "There are 3 red circles and 2 blue squares. How many shapes are there?",
    "<think>1 red circle, 2 blue squares.</think> There are 3. <answer>3</answer>",
    "Describe the image. A bar chart: red 4, green 7, blue 9. Which bar is the tallest?",
] * 30


def tiny_folder(path: Path, *, tied: bool = False, seed: int = 0, **changes: Any) -> ModelFolder:
    """An untrained model folder of about 0.3 M parameters with the real structure."""
    base = BaseConfig(
        hidden=64,
        intermediate=96,
        layers=2,
        heads=2,
        kv_heads=1,
        vision_hidden=48,
        vision_intermediate=80,
        vision_depth=2,
        vision_heads=2,
        tie_embeddings=tied,
        initializer_range=0.1,
        vocab_size=360,
        seed=seed,
    ).model_copy(update=changes)
    make_folder(path, base, CORPUS)
    return open_folder(path)


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_sample(
    folder: ModelFolder, rng: np.random.Generator, sizes: list[tuple[int, int]], response: int
) -> Sample:
    """A question with images of ``sizes`` (height, width) and a random response.

    Sizes are multiples of 28; a model with another merged patch gets images of as many tokens.
    """
    from ovlt.model import sizes as model_sizes

    merged = model_sizes.merged_patch(folder.config)
    sizes = [(h // 28 * merged, w // 28 * merged) for h, w in sizes]
    images = tuple(random_image(rng, h, w) for h, w in sizes)
    grids = [model_sizes.image_grid(folder.config, h, w) for h, w in sizes]
    words = " ".join(rng.choice(["red", "blue", "circle", "bar", "How", "many"], 3 + response % 5))
    ids = folder.chat.prompt_ids("<image>" * len(sizes) + words, grids)
    prompt = Prompt(f"p{rng.integers(1 << 30)}", "test", words, "3", ids, images)
    allowed = np.setdiff1d(np.arange(folder.config.text_config.vocab_size), folder.banned)
    said = rng.choice(allowed, response)
    return Sample(
        prompt=prompt,
        token_ids=np.concatenate([ids, said]),
        loss_mask=np.concatenate([np.zeros(len(ids), bool), np.ones(response, bool)]),
    )
