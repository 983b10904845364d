"""Folders as they are published: config.json, names, dtypes and files of the real model, cut down.

The configurations are those of the model hub, word for word; sizes are then cut to what a test can
run, the vocabulary is that of a tiny tokenizer, and the weights are random.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ovlt.config import BaseConfig
from ovlt.model.families import family_named
from ovlt.smoke.base import make_folder

CORPUS = ["There are 3 red circles. How many shapes are there? <answer>3</answer>"] * 30
FILES = 3  # that the weights lie in

_VISION = {
    "deepstack_visual_indexes": [5, 11, 17],
    "depth": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1024,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "model_type": "qwen3_vl",
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2560,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "dtype": "bfloat16",
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "max_position_embeddings": 262144,
    "model_type": "qwen3_vl_text",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "mrope_interleaved": True,
        "mrope_section": [24, 20, 20],
        "rope_type": "default",
    },
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 151936,
}


def _qwen3_vl(tied: bool, text: dict[str, int], vision: dict[str, object]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": _TEXT | text | {"tie_word_embeddings": tied},
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": _VISION | vision | {"out_hidden_size": (_TEXT | text)["hidden_size"]},
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


_LARGE_TOWER = {
    "deepstack_visual_indexes": [8, 16, 24],
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-VL-2B-Instruct": _qwen3_vl(
        True,
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
        },
        {},
    ),
    "Qwen3-VL-4B-Instruct": _qwen3_vl(True, {}, {}),
    "Qwen3-VL-8B-Instruct": _qwen3_vl(
        False, {"hidden_size": 4096, "intermediate_size": 12288}, _LARGE_TOWER
    ),
}
_LAYERS = 32
_RECURRENT_TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "layer_types": [("linear", "full")[i % 4 == 3] + "_attention" for i in range(_LAYERS)],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 16,
    "num_hidden_layers": _LAYERS,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 248320,
}


def _qwen3_5(tied: bool, text: dict[str, int], vision: dict[str, object]) -> dict[str, Any]:
    text = _RECURRENT_TEXT | text | {"tie_word_embeddings": tied}
    tower = _VISION | {"model_type": "qwen3_5", "deepstack_visual_indexes": []} | vision
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "image_token_id": 248056,
        "model_type": "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 248057,
        "vision_config": tower | {"out_hidden_size": text["hidden_size"]},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    }


PUBLISHED |= {
    "Qwen3.5-4B": _qwen3_5(True, {}, {}),
    "Qwen3.5-9B": _qwen3_5(
        False,
        {"hidden_size": 4096, "intermediate_size": 12288},
        _LARGE_TOWER | {"deepstack_visual_indexes": []},
    ),
}
# What is cut: the head keeps its 128, so that it is not hidden_size / num_attention_heads.
_CUT_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
_CUT_TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
_CUT_VISION = {"depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 2}
_CUT_VISION |= {"out_hidden_size": 64, "deepstack_visual_indexes": [0, 1, 3]}
# Of Qwen3.5: a recurrent layer and a full one, and the layer that drafts tokens, which ovlt leaves.
_CUT_LAYERS: dict[str, object] = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
DRAFTER = ("fc", "norm", "pre_fc_norm_hidden", "layers.0.input_layernorm", "layers.0.mlp.up_proj")
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def published_folder(path: Path, name: str, *, seed: int = 0) -> Path:
    """Write the folder of a published model, cut down, in bfloat16 and several files."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    tree = copy.deepcopy(PUBLISHED[name])
    make_folder(path, BaseConfig(family=tree["model_type"], vocab_size=360), CORPUS)
    theirs = json.loads((path / "config.json").read_text())
    tree["text_config"] |= _CUT_TEXT | {"vocab_size": theirs["text_config"]["vocab_size"]}
    for key in {"bos_token_id", "eos_token_id"} & tree["text_config"].keys():
        tree["text_config"][key] = theirs["text_config"][key]
    tree["vision_config"] |= _CUT_VISION
    if recurrent := "layer_types" in tree["text_config"]:
        tree["text_config"] |= _CUT_LAYERS
        tree["vision_config"]["deepstack_visual_indexes"] = []
    tree |= {key: theirs[key] for key in tree if key.endswith("_token_id")}
    (path / "config.json").write_text(json.dumps(tree, indent=2))
    (path / "processor_config.json").unlink(missing_ok=True)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(path)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    (path / "model.safetensors").unlink()
    disk_name = family_named(tree["model_type"]).model.disk_name
    weights = {disk_name(n): p.detach() for n, p in model.named_parameters()}
    if recurrent:
        weights |= {f"mtp.{name}.weight": torch.randn(3, 5).bfloat16() for name in DRAFTER}
        weights |= {n: w.float() for n, w in weights.items() if n.endswith("A_log")}
    names = sorted(weights)
    index: dict[str, str] = {}
    for i in range(FILES):
        file = f"model-{i + 1:05d}-of-{FILES:05d}.safetensors"
        part = {n: weights[n].contiguous() for n in names[i::FILES]}
        save_file(part, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    tree = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
    (path / "model.safetensors.index.json").write_text(json.dumps(tree, indent=2))
    return path


def names_of(path: Path) -> dict[str, list[int]]:
    """Return name and shape of every tensor of a folder."""
    return {
        name: list(tensor.shape)
        for file in path.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
