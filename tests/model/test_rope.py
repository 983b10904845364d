"""Rotary positions of every type in config.json: as transformers', or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.folders import copy_of, edit_json, rope
from helpers.tiny import random_sample, tiny_folder
from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration

from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.packed_model import PackedModel, empty_model, fill_buffers
from ovlt.model.weights import read_weights
from ovlt.train.pack import collate
from ovlt.types import Sample

TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "other base": {"rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with its own attention": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128,
        "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0,
    },
    "yarn by its old name": {
        "rope_type": None, "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
    },
    "mrope by its old name": {"rope_type": None, "type": "mrope"},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("rope")
    tiny_folder(home / "model")
    return home


def packed(folder: ModelFolder) -> PackedModel:
    model = empty_model(folder.config)
    model.to_empty(device="cpu")
    fill_buffers(model, torch.device("cpu"))
    read_weights(model, folder.path)
    model.set_head(banned=folder.banned)
    return model


def theirs(model: Any, folder: ModelFolder, sample: Sample) -> torch.Tensor:
    """Log-probs of the response by transformers' own forward, alone."""
    ids = torch.from_numpy(sample.token_ids)[None]
    kwargs: dict[str, Any] = {}
    if sample.prompt.images:
        processor = AutoImageProcessor.from_pretrained(folder.path)
        kwargs = dict(
            processor(images=list(sample.prompt.images), return_tensors="pt", do_resize=False)
        )
    model.model.rope_deltas = None
    types = (ids == folder.config.image_token_id).int()
    logits = model(input_ids=ids, mm_token_type_ids=types, use_cache=False, **kwargs).logits[0]
    logits[:, list(folder.banned)] = -torch.inf
    rows = np.flatnonzero(sample.loss_mask)
    return torch.log_softmax(logits.double(), -1)[rows - 1, ids[0, rows]]


@pytest.mark.parametrize("keys", TYPES.values(), ids=TYPES.keys())
def test_log_probs_are_those_of_transformers(
    home: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    rope(copy_of(home / "model", tmp_path / "m"), **keys)
    folder = open_folder(tmp_path / "m")
    rng = np.random.default_rng(3)
    samples = [random_sample(folder, rng, s, 9) for s in ([], [(252, 140), (84, 84)], [(56, 84)])]
    samples.sort(key=lambda s: len(s.token_ids))
    batch = collate(samples, [1.0] * 3, config=folder.config, patchify=folder.patchify)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder.path, dtype=torch.float32)
    with torch.no_grad():
        ours = packed(folder)(batch).logp
        expected = torch.cat([theirs(plain, folder, s) for s in samples])
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["default", "yarn"])
def test_no_version_of_transformers_warns_of_how_it_is_called(
    home: Path, tmp_path: Path, name: str
) -> None:
    rope(copy_of(home / "model", tmp_path / "m"), **TYPES[name])
    packed(open_folder(tmp_path / "m"))


@pytest.mark.parametrize("name", ["default", "linear", "yarn by its old name"])
def test_the_hubs_flat_configuration_means_the_same(home: Path, tmp_path: Path, name: str) -> None:
    """As Qwen2.5-VL's folders on the Hub have it: one table, and rope_scaling."""
    nested = copy_of(home / "model", tmp_path / "nested")
    rope(nested, **TYPES[name])
    flat = copy_of(nested, tmp_path / "flat")

    def flatten(config: dict[str, Any]) -> None:
        text = config.pop("text_config")
        table = text.pop("rope_parameters")
        config |= {k: v for k, v in text.items() if k != "model_type"}
        config |= {"rope_theta": table.pop("rope_theta"), "rope_scaling": table}
        if table.get("rope_type") == "default":
            config["rope_scaling"] = {"type": "mrope", "mrope_section": table["mrope_section"]}

    edit_json(flat / "config.json", flatten)
    ours, theirs = (
        packed(open_folder(folder)).model.language_model.rotary_emb for folder in (flat, nested)
    )
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling


def test_the_types_matter(home: Path, tmp_path: Path) -> None:
    """So the test above sees a type that is left out."""
    model = packed(open_folder(home / "model"))
    usual = model.model.language_model.rotary_emb
    for number, name in enumerate(("linear", "yarn", "llama3")):
        target = copy_of(home / "model", tmp_path / str(number))
        rope(target, **TYPES[name])
        other = packed(open_folder(target)).model.language_model.rotary_emb
        assert not torch.equal(other.inv_freq, usual.inv_freq), name
        assert (other.attention_scaling != 1.0) == (name == "yarn")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16,
          "factor": 4.0, "original_max_position_embeddings": 64}, "type 'longrope'"),
        ({"rope_type": "proportional"}, "type 'proportional'"),
        ({"rope_type": "twisted"}, "type 'twisted'"),
        ({"factor": 4.0}, "'default' do not know factor"),  # the type was forgotten
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor 0.5"),
        ({"rope_type": "linear", "factor": "4"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_quick": 1.0}, "beta_quick"),
        ({"mrope_section": [4, 6]}, "mrope_section"),
        ({"mrope_section": [4, 6, 7]}, "mrope_section"),
        ({"mrope_section": None}, "mrope_section"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)  # fmt: skip
def test_what_the_packed_model_cannot_do_is_refused_by_name(
    home: Path, tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    rope(copy_of(home / "model", tmp_path / "m"), **keys)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        open_folder(tmp_path / "m")
    assert words in str(caught.value)


def test_a_sliding_window_is_refused(home: Path, tmp_path: Path) -> None:
    target = copy_of(home / "model", tmp_path / "m")

    def change(config: dict[str, Any]) -> None:
        config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8}
        config["text_config"] |= {"max_window_layers": 0, "layer_types": None}

    edit_json(target / "config.json", change)
    with pytest.raises(ValueError, match="sliding_attention"):
        open_folder(target)
