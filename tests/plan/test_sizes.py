"""Counts from a configuration are those of transformers' models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.planned import P3, P7
from helpers.tiny import tiny_folder

from ovlt.model import sizes as model_sizes
from ovlt.model.families import NAMES
from ovlt.model.packed_model import empty_model
from ovlt.model.sizes import (
    decoder_flops,
    head_flops,
    kv_bytes_per_token,
    parameters,
    read_config,
    tower_flops,
)
from ovlt.plan.command import SIZES

SHIPPED = sorted(SIZES.glob("*.json"))
VISION = [file for file in SHIPPED if file.stem.startswith(NAMES)]
TEXT_ONLY = [file for file in SHIPPED if file not in VISION]


# As the model hub counts the published safetensors, or transformers the published configuration.
PUBLISHED = {
    "qwen2_5_vl_3b": P3,
    "qwen2_5_vl_7b": P7,
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
    "qwen3_vl_32b": 33_357_390_064,
    "qwen3_5_4b": 4_539_265_536,
    "qwen3_5_9b": 9_409_813_744,
}


@pytest.mark.parametrize("file", VISION, ids=lambda file: file.stem)
def test_shipped_sizes_are_those_of_transformers(file: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    shutil.copy(file, tmp_path / "config.json")
    model: Any = empty_model(AutoConfig.from_pretrained(tmp_path))
    counted = parameters(read_config(file))

    def real(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    assert counted.total == real(model) == PUBLISHED[file.stem]
    assert counted.tower == real(model.model.visual)
    language = model.model.language_model
    assert counted.decoder == real(language.layers) + real(language.norm)
    assert counted.embedding == real(language.embed_tokens)
    in_blocks = sum(real(block) for block in model.groups())
    assert counted.root == counted.total - in_blocks


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", NAMES)
def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path, family: str, tied: bool) -> None:
    folder = tiny_folder(tmp_path, family=family, tied=tied, kv_heads=2, layers=3)
    ours = read_config(tmp_path / "config.json")
    assert parameters(ours) == parameters(folder.config)
    assert parameters(ours).total == sum(p.numel() for p in empty_model(folder.config).parameters())
    assert parameters(ours).head == (0 if tied else parameters(ours).embedding)
    grid = model_sizes.image_grid(ours, 84, 140)
    assert decoder_flops(ours, 37) == decoder_flops(folder.config, 37)
    assert head_flops(ours, 37) == head_flops(folder.config, 37)
    assert tower_flops(ours, [grid]) == tower_flops(folder.config, [grid])


def test_the_old_layout_of_a_configuration_is_read(tmp_path: Path) -> None:
    tree = json.loads((SIZES / "qwen2_5_vl_7b.json").read_text())
    old = {**tree, **tree.pop("text_config")}
    old["vision_config"]["in_chans"] = old["vision_config"].pop("in_channels")
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert parameters(read_config(tmp_path / "config.json")).total == P7


WHOLE = (
    '{"model_type": "qwen2_5_vl", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, '
    '"num_hidden_layers": 28, "num_attention_heads": 2, "num_key_value_heads": 1}'
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ('{"model_type": "llama"}', "'llama'"),
        ('{"model_type": "qwen2_5_vl"}', "lacks vocab_size"),
        ('{"model_type": "qwen2_5_vl", "text_config": null}', "text_config is None, not a table"),
        ('{"model_type": "qwen2_5_vl", "vision_config": 3}', "vision_config is 3, not a table"),
        (WHOLE.replace("28", '"28"'), "num_hidden_layers is '28', not a whole number above 0"),
        (WHOLE.replace("28", "0"), "num_hidden_layers is 0, not a whole number above 0"),
        (WHOLE[:-1] + ', "max_position_embeddings": null}', "max_position_embeddings is None"),
        (WHOLE[:-1] + ', "vision_config": {"depth": []}}', "depth is \\[\\], not a whole number"),
    ],
)
def test_other_configurations_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("file", TEXT_ONLY, ids=lambda file: file.stem)
def test_sizes_of_a_text_only_teacher_are_those_of_transformers(file: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copy(file, tmp_path / "config.json")
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    ours = read_config(file, text_only=True)
    counted = parameters(ours)
    assert counted.total == sum(p.numel() for p in model.parameters())
    # as the model hub counts the published safetensors
    assert counted.total == {"q": 32_763_876_352, "d": 14_770_033_664}[file.stem[0]]
    assert (counted.tower, counted.root) == (0, counted.norm + counted.embedding + counted.head)
    assert ours.text_config.max_positions == config.max_position_embeddings
    # a key and a value row of each layer, and twice the weights of a token
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    assert kv_bytes_per_token(ours, 2) == 2 * 2 * config.num_hidden_layers * heads
    assert decoder_flops(ours, 1) == pytest.approx(2 * counted.decoder, rel=0.001)
    with pytest.raises(ValueError, match="'qwen2'"):
        read_config(file)  # no model to train
