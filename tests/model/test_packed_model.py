"""PackedModel beside the transformers class that it extends."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_folder
from transformers import AutoModelForImageTextToText

from ovlt.model import attention
from ovlt.model.families import NAMES
from ovlt.model.packed_model import PackedModel, empty_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", NAMES)
def test_names_shapes_and_order_of_parameters_are_those_of_transformers(
    tmp_path: Path, family: str, tied: bool
) -> None:
    """So checkpoints, the weight stream and the optimizer's state need no translation."""
    config: Any = tiny_folder(tmp_path, family=family, tied=tied).config
    with torch.device("meta"):
        plain = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    ours = [(name, p.shape) for name, p in empty_model(config).named_parameters()]
    assert ours == [(name, p.shape) for name, p in plain.named_parameters()]


def test_the_configuration_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    """Another model made from it would otherwise attend across its samples."""
    config = tiny_folder(tmp_path).config
    before = copy.deepcopy(config)
    empty_model(config)
    assert config.text_config._attn_implementation == before.text_config._attn_implementation
    assert config.vision_config._attn_implementation == before.vision_config._attn_implementation


def test_forward_is_a_method_of_the_class_and_options_are_one_record(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    model = empty_model(folder.config)
    assert isinstance(model, PackedModel)
    assert not any("forward" in vars(module) for module in model.modules())
    model.to_empty(device="cpu")
    model.set_head(temperature=0.7, banned=folder.banned, logits_dtype=torch.bfloat16)
    temperature, logits_dtype, banned_ids = model.head_options
    assert (temperature, logits_dtype) == (0.7, torch.bfloat16)
    assert banned_ids is not None
    assert banned_ids.tolist() == list(folder.banned)


def test_images_that_samples_share_are_gathered_so_that_their_gradients_sum_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA's ``index_select`` sums in bfloat16; a CPU's does not, so no value tells."""
    gathered: list[torch.Tensor] = []

    def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        gathered.append(index)
        return x.index_select(0, index)

    monkeypatch.setattr(attention, "gather_rows", gather)
    features = torch.tensor([[1.0], [2.0]])
    model: Any = SimpleNamespace(decoder_keywords=lambda *_: {})
    batch: Any = SimpleNamespace(
        features=(features,),
        feature_index=torch.tensor([1, 0, 1]),
        image_slots=torch.tensor([0, 2, 3]),
    )
    out, _ = PackedModel._with_images(model, torch.zeros(4, 1), batch)
    assert out[:, 0].tolist() == [2.0, 0.0, 1.0, 2.0]
    assert [index.tolist() for index in gathered] == [[1, 0, 1]]
