"""Models of published widths with random weights, and batches for them: for bench/step.py."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from ovlt.config import BaseConfig, ModelConfig
from ovlt.model import parallel, sizes
from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.packed_model import PackedModel
from ovlt.smoke.base import make_folder
from ovlt.system.runtime import Runtime
from ovlt.types import Prompt, Sample

MODELS = Path(__file__).resolve().parents[1] / "recipes" / "models"
FILES = {"3B": "qwen2_5_vl_3b.json", "7B": "qwen2_5_vl_7b.json"}  # "tiny": what the tests use
TINY = BaseConfig(
    hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1, vision_hidden=48,
    vision_intermediate=80, vision_depth=2, vision_heads=2, initializer_range=0.1, vocab_size=360,
)  # fmt: skip
BANNED = 400  # ids at the end of the vocabulary that no token has, about as many as Qwen's
QUESTION_TOKENS = 100
RESPONSES, SHORTEST, LONGEST = 5, 200, 600  # of a group; tokens of a response
STD = 0.02  # of the random weights


def tiny_folder(home: Path) -> ModelFolder:
    """Return a folder with tokenizer and processor, made in ``home``."""
    make_folder(home / "tiny", TINY, ["How many red circles are there? 1 2 3 4"] * 50)
    return open_folder(home / "tiny")


def sized(folder: ModelFolder, size: str, layers: int = 0) -> ModelFolder:
    """Return ``folder`` with the sizes of a published model, and so many decoder layers (0: all).

    Its files stay as they are: only ``random_model`` can load it.
    """
    if size == "tiny":
        return folder
    published = json.loads((MODELS / FILES[size]).read_text(encoding="utf-8"))
    tree = copy.deepcopy(folder.config.to_dict())
    text, vision = tree["text_config"], tree["vision_config"]
    text |= published["text_config"]
    vision |= published["vision_config"]
    text["num_hidden_layers"] = layers or text["num_hidden_layers"]
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    text.pop("head_dim", None)
    text["max_position_embeddings"] = 128_000
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
    }  # fmt: skip
    tree["tie_word_embeddings"] = text["tie_word_embeddings"]
    vocab = text["vocab_size"]
    special = [i for i in folder.banned if i < folder.config.text_config.vocab_size - 16]
    return dataclasses.replace(
        folder,
        config=type(folder.config).from_dict(tree),
        banned=tuple({*special, *range(vocab - BANNED, vocab)}),
    )


def random_model(
    folder: ModelFolder, runtime: Runtime, config: ModelConfig, dtype: torch.dtype
) -> PackedModel:
    """Return the model as training loads it, but for the weights, which are drawn on the device."""
    with mock.patch.object(parallel, "read_weights", _draw_weights):
        return parallel.load_sharded(folder, runtime.mesh, runtime.device, config, dtype=dtype)


def _draw_weights(model: PackedModel, path: Path) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local = getattr(parameter, "_local_tensor", parameter)
            if name.endswith("bias"):
                local.zero_()
            elif local.ndim == 1:  # the gain of a norm
                local.fill_(1.0)
            else:
                local.normal_(std=STD)


def group_samples(
    folder: ModelFolder, budget: int, *, pixels: int, shortest: int, longest: int
) -> list[Sample]:
    """Return groups of responses, each to a question with an image, that fill ``budget`` tokens.

    A shared prompt counts once, as it is packed. Advantages are random.
    """
    rng = np.random.default_rng(0)
    config = folder.config
    _, height, width = sizes.square_grid(config, pixels)
    patch = sizes.merged_patch(config) // int(config.vision_config.spatial_merge_size)
    grid = sizes.image_grid(config, height * patch, width * patch)
    allowed = np.setdiff1d(np.arange(config.text_config.vocab_size), folder.banned)
    question = folder.chat.prompt_ids("<image>", [grid])
    uniform = -np.log(len(allowed))  # what a random model gives each token, nearly
    samples: list[Sample] = []
    while True:
        lengths = rng.integers(shortest, longest + 1, RESPONSES)
        prompt_tokens = len(question) + min(QUESTION_TOKENS, shortest)
        if prompt_tokens + int(lengths.sum()) > budget:
            return samples
        budget -= prompt_tokens + int(lengths.sum())
        pixels_of = (height * patch, width * patch, 3)
        image = rng.integers(0, 256, pixels_of, dtype=np.uint8)
        ids = np.concatenate([question, rng.choice(allowed, prompt_tokens - len(question))])
        prompt = Prompt(f"p{len(samples)}", "bench", "", "", ids, (image,))
        for length in lengths:
            response = rng.choice(allowed, int(length))
            samples.append(
                Sample(
                    prompt=prompt,
                    token_ids=np.concatenate([ids, response]),
                    loss_mask=np.arange(len(ids) + length) >= len(ids),
                    engine_logp=np.full(len(ids) + length, uniform, np.float32),
                    advantage=float(rng.standard_normal()),
                )
            )
