"""Model folders as people have them: incomplete, foreign, adapters. Each refused in a sentence."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.folders import copy_of, edit_json, edit_weights, rope
from helpers.tiny import tiny_folder
from safetensors.torch import load_file, save_file

from ovlt.model.contents import folder_digest, model_contents
from ovlt.model.families import family_named
from ovlt.model.load import open_folder, open_reference
from ovlt.model.packed_model import empty_model
from ovlt.model.weights import read_weights, weight_index

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("folders")
    tiny_folder(home / "untied")
    tiny_folder(home / "tied", tied=True)
    return home


def name_of(folder: Path, end: str) -> str:
    """The name on disk of the first tensor that ends so."""
    return next(n for n in load_file(folder / "model.safetensors") if n.endswith(end))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct", "peft_type": "LORA"})
    )


def only_adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    adapter(folder)
    save_file(
        {"base_model.model.x.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors"
    )


def lora_weights(folder: Path) -> None:
    tensors = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)}
    save_file(tensors, folder / "model.safetensors")


def beside(tensors: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: save_file(tensors, folder / "more.safetensors")


def index(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


def of_config(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(keys))


def of_vision(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(
        folder / "config.json", lambda c: c["vision_config"].update(keys)
    )


def of_text(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c["text_config"].update(keys))


def of_processor(**keys: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / "preprocessor_config.json", lambda c: c.update(keys))
        edit_json(
            folder / "processor_config.json", lambda c: c.get("image_processor", {}).update(keys)
        )

    return change


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "adapter alone": (only_adapter, "LoRA adapter.*Qwen2.5-VL-3B-Instruct.*merge it first"),
    "adapter beside a config": (adapter, "LoRA adapter.*merge it first"),
    "adapter weights by themselves": (lora_weights, "LoRA adapter: merge it first"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer",
    ),
    "no processor": (
        lambda f: [(f / n).unlink() for n in ("preprocessor_config.json", "processor_config.json")],
        "image processor",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "no \\*.safetensors files; ovlt reads no pickled",
    ),
    "a tensor is missing": (
        lambda f: edit_weights(f, lambda t: t.pop(name_of(f, "layers.1.mlp.up_proj.weight"))),
        "lacks 1 of .*up_proj",
    ),
    "a tensor nobody reads": (
        lambda f: edit_weights(f, lambda t: t.update({"value_head.weight": torch.zeros(3)})),
        "holds 1 tensors that this model does not have.*value_head",
    ),
    "layers beyond the configuration": (
        of_text(num_hidden_layers=1, layer_types=["full_attention"]), "does not have.*layers.1",
    ),
    "another shape": (of_text(intermediate_size=100), "has shape .* configuration says"),
    "quantised": (
        lambda f: edit_weights(f, lambda t: t.update({NORM: t[NORM].to(torch.int8)})
                               if NORM in t else t.update(
                                   {k: v.to(torch.int8) for k, v in t.items() if "norm" in k})),
        "dtype I8",
    ),
    "quantised by its own word": (
        of_config(quantization_config={"quant_method": "fp8"}), "quantised weights",
    ),
    "one name in two files": (
        beside({"lm_head.weight": torch.zeros(2)}), "both .* hold lm_head.weight",
    ),
    "truncated": (
        lambda f: os.truncate(f / "model.safetensors", 900),
        "truncated or not a safetensors file",
    ),
    "an LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        "truncated or not a safetensors file",
    ),
    "index is no JSON": (index("{"), "index.json is damaged"),
    "index is a list": (index("[]"), "index.json is damaged"),
    "index without a map": (index("{}"), "index.json is damaged"),
    "index points outside": (index('{"weight_map": {"a": "../x.safetensors"}}'), "own folder"),
    "index and a whole file": (
        index('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'), "holds model.saf.* and",
    ),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "config without a type": (
        lambda f: edit_json(f / "config.json", lambda c: c.pop("model_type")), "config.json",
    ),
    "another family": (of_config(model_type="qwen2_vl"), "holds a 'qwen2_vl' model"),
    "unknown family": (
        of_config(model_type="brandnew"),
        "a 'brandnew' model; ovlt knows 'qwen2_5_vl'.*docs/families.md says how to add",
    ),
    "a mixture of experts": (of_config(model_type="qwen3_vl_moe"), "a dense model of 'qwen3_vl'"),
    "a text model": (of_config(model_type="qwen3"), "text-only .* decoder of 'qwen3_vl'"),
    "text-only weights": (
        lambda f: edit_weights(f, lambda t: [t.pop(n) for n in list(t) if "visual" in n]),
        "lacks .*the whole vision tower: these are text-only weights",
    ),
    "a video processor alone": (
        lambda f: [
            (f / "preprocessor_config.json").rename(f / "video_preprocessor_config.json"),
            (f / "processor_config.json").unlink(),
        ],
        "image processor files.* of videos alone",
    ),
    "heads that divide nothing": (of_text(num_attention_heads=7), "config.json"),
    "template file is no JSON": (
        lambda f: (f / "chat_template.jinja").rename(f / "chat_template.json"),
        "chat_template.json cannot be read",
    ),
    "rotary sections that are no numbers": (
        lambda f: rope(f, mrope_section=["4", "6", "6"]), "need mrope_section, three numbers",
    ),
    "a negative rotary section": (lambda f: rope(f, mrope_section=[-4, 14, 6]), "mrope_section"),
    "a rotary base of zero": (lambda f: rope(f, rope_theta=0), "rope_theta 0: .* above 0"),
    "a rotary base as text": (lambda f: rope(f, rope_theta="1e6"), "rope_theta '1e6'.* a number"),
    "an endless factor": (
        lambda f: rope(f, rope_type="linear", factor=float("inf")), "factor inf: .* 1 or more",
    ),
    "no window": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_config"].update(window_size=8)),
        "window_size 8 .* must be 28 or more",
    ),
    "a part of a family": (of_config(model_type="qwen2_5_vl_text"), "one part of a 'qwen2_5_vl'"),
    "names of a wrapper": (
        lambda f: edit_weights(
            f, lambda t: [t.update({f"module.{n}": t.pop(n)}) for n in list(t)]
        ),
        "lacks .* it holds 'module.lm_head.weight'",
    ),
    "dropout": (of_text(attention_dropout=0.1), "attention_dropout 0.1 is not supported"),
    "another patch size": (of_processor(patch_size=16), "patch_size is 16.*have 14"),
    "no normalisation": (of_processor(do_normalize=False), "do_normalize is False"),
    "bilinear": (of_processor(resample=2), "resample is"),
    "other grey values": (of_processor(rescale_factor=1.0), "rescale_factor is 1.0"),
    "a deviation of zero": (of_processor(image_std=[1.0, 0.0, 1.0]), "image_std"),
    "processor without sizes": (
        lambda f: [
            edit_json(f / n, lambda c: c.update(size=7, image_processor={"size": 7}))
            for n in ("preprocessor_config.json", "processor_config.json")
        ],
        "image processor files",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_cannot_be_trained_is_refused_in_a_sentence(
    home: Path, tmp_path: Path, case: str
) -> None:
    change, words = CASES[case]
    folder = copy_of(home / "untied", tmp_path / "m")
    change(folder)
    with pytest.raises(ValueError, match=f"(?s){words}") as caught:
        open_folder(folder)
    assert str(folder) in str(caught.value)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "axes in blocks": (lambda f: rope(f, mrope_interleaved=False), "mrope_interleaved is false"),
    "a table that is no square": (of_vision(num_position_embeddings=60), "60 .* is no square"),
    "a tap beyond the tower": (of_vision(deepstack_visual_indexes=[0, 7]), r"\[0, 7\] .* 2 blocks"),
    "taps in disorder": (of_vision(deepstack_visual_indexes=[1, 0]), "must be ascending"),
    "sections of another head": (lambda f: rope(f, mrope_section=[24, 20, 20]), "mrope_section"),
    "quantised": (of_config(quantization_config={"quant_method": "fp8"}), "quantised weights"),
    "patches of another family": (of_processor(patch_size=14), "patch_size is 14.*have 16"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_only_another_family_has_is_looked_at_too(tmp_path: Path, case: str) -> None:
    change, words = OTHERS[case]
    tiny_folder(tmp_path / "m", family="qwen3_vl")
    change(tmp_path / "m")
    with pytest.raises(ValueError, match=f"(?s){words}"):
        open_folder(tmp_path / "m")


def test_paths_that_are_no_folder_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.path is not set"):
        open_folder("")
    with pytest.raises(ValueError, match=r"no model folder at.*nowhere"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"it is .hf://Qwen/Qwen2\.5-VL"):
        open_folder("Qwen/Qwen2.5-VL-3B-Instruct")


def test_a_tied_head_with_values_of_its_own_is_refused(home: Path, tmp_path: Path) -> None:
    folder = copy_of(home / "tied", tmp_path / "m")
    embedding = load_file(folder / "model.safetensors")[name_of(folder, "embed_tokens.weight")]
    edit_weights(folder, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    open_folder(folder)  # a copy is no harm
    edit_weights(folder, lambda t: t.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(ValueError, match=r"ties head and embedding.*lm_head\.weight"):
        open_folder(folder)


def test_computed_buffers_of_older_checkpoints_are_no_harm(home: Path, tmp_path: Path) -> None:
    folder = copy_of(home / "untied", tmp_path / "m")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda t: t.update({name: torch.zeros(16)}))
    open_folder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    home: Path, tmp_path: Path, value: float
) -> None:
    """As a run that diverged leaves them; the first step would blame the learning rate."""
    folder = copy_of(home / "untied", tmp_path / "m")
    name = name_of(folder, "layers.1.mlp.up_proj.weight")
    edit_weights(folder, lambda t: t[name][3:4, 5:6].fill_(value))
    opened = open_folder(folder)
    model = empty_model(opened.config)
    model.to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"up_proj.weight holds numbers that are not finite"):
        read_weights(model, folder)


def test_a_reference_must_read_tokens_alike(home: Path, tmp_path: Path) -> None:
    model = open_folder(home / "untied")
    assert open_reference("", model) is model
    assert open_reference(home / "tied", model).path == home / "tied"
    folder = copy_of(home / "untied", tmp_path / "m")

    def swap(file: dict[str, Any]) -> None:
        vocabulary = file["model"]["vocab"]
        a, b = sorted(vocabulary)[:2]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    edit_json(folder / "tokenizer.json", swap)
    with pytest.raises(ValueError, match="another tokenizer"):
        open_reference(folder, model)


def test_digests_name_the_part_that_changed(home: Path, tmp_path: Path) -> None:
    before = model_contents(open_folder(home / "untied"), "start")
    changes: dict[str, Callable[[Path], object]] = {
        "weights": lambda f: edit_weights(
            f, lambda t: t[name_of(f, "norm.weight")][3:4].add_(1e-3)
        ),
        "config.json": of_text(rms_norm_eps=1e-5),
        "chat template": lambda f: (f / "chat_template.jinja").write_text(
            (f / "chat_template.jinja").read_text().replace("assistant", "robot")
        ),
        "tokenizer and processor": lambda f: edit_json(
            f / "preprocessor_config.json", lambda c: c.update(image_mean=[0.5, 0.5, 0.5])
        ),
    }
    for number, (part, change) in enumerate(changes.items()):
        folder = copy_of(home / "untied", tmp_path / str(number))
        assert folder_digest(open_folder(folder)) == folder_digest(open_folder(home / "untied"))
        change(folder)
        after = model_contents(open_folder(folder), "start")
        assert [name for name in before if before[name] != after[name]] == [f"start: {part}"]


def test_large_files_are_sampled_by_tensor(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training replaces them: every value of one small tensor, or of all."""
    monkeypatch.setattr("ovlt.model.contents._WHOLE_BYTES", 0)
    before = folder_digest(open_folder(home / "untied"))
    names = list(load_file(home / "untied" / "model.safetensors"))
    for number, name in enumerate(random.Random(5).sample(names, 8)):
        folder = copy_of(home / "untied", tmp_path / str(number))
        edit_weights(folder, lambda t, name=name: t[name].add_(1e-3))
        assert folder_digest(open_folder(folder)) != before, name


def test_the_index_gives_each_tensor_its_file(home: Path) -> None:
    files = weight_index(home / "untied", family_named("qwen2_5_vl"))
    assert set(files.values()) == {home / "untied" / "model.safetensors"}
