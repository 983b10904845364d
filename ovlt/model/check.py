"""Whether the files of a model folder agree with each other and with what the trainer does.

Everything is read from configurations and from the headers of weight files, so it costs seconds.
What would only bend a curve (a rotary type that is not applied, weights that nobody reads) raises
ValueError with the name of the thing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open

from ovlt.model.families import family_of, is_known
from ovlt.model.packed_model import ROPE_TYPES, empty_model
from ovlt.model.sizes import Config, TextConfig
from ovlt.model.template import IMAGE_TOKEN
from ovlt.model.tokenizer import Tokenizer
from ovlt.model.weights import weight_index

# The keys of rope_parameters that each type reads; another one would be ignored in silence.
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "mrope_section"}
_ROPE_KEYS_OF = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "llama3": {
        "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    },
}  # fmt: skip
_DTYPES = ("F64", "F32", "F16", "BF16")
# Buffers that older checkpoints hold; they are computed.
_COMPUTED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
_SAMPLED_ROWS = 64  # of a tied head and embedding; two different ones differ in every row


def check_config(path: Path, config: Config) -> None:
    """Raise ValueError for what a configuration asks and the packed model does not do."""
    text = config.get_text_config()
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{path} holds quantised weights (quantization_config in config.json): ovlt trains "
            "float weights; take the folder that it was quantised from"
        )
    for table in (text, config.vision_config):
        if dropout := getattr(table, "attention_dropout", 0):
            raise ValueError(
                f"{path}/config.json: attention_dropout {dropout} is not supported: set it to 0"
            )
    family = family_of(config).model
    if kinds := set(getattr(text, "layer_types", None) or ()) - family.LAYER_TYPES:
        raise ValueError(
            f"{path}/config.json asks for {', '.join(sorted(kinds))} (use_sliding_window), which "
            "the packed attention does not have: set it to false"
        )
    _check_rope(path, text, family.ROPE_KEYS)
    if reason := family.check_config(config):
        raise ValueError(f"{path}/config.json: {reason}")


def _check_rope(path: Path, text: TextConfig, of_family: frozenset[str]) -> None:
    rope = cast("Mapping[str, object]", getattr(text, "rope_parameters", None) or {})
    kind, where = str(rope.get("rope_type", "default")), f"{path}/config.json: rotary positions of"
    if kind not in ROPE_TYPES:
        raise ValueError(
            f"{where} type '{kind}' are not supported (known: {', '.join(ROPE_TYPES)}): "
            "their frequencies depend on the longest sample of a batch, or are unknown"
        )
    if odd := sorted(rope.keys() - _ROPE_KEYS - of_family - _ROPE_KEYS_OF[kind]):
        if odd == ["partial_rotary_factor"] and rope["partial_rotary_factor"] == 1:
            return
        raise ValueError(
            f"{where} type '{kind}' do not know {', '.join(odd)}: name the type that does, or "
            "leave it out"
        )
    for name, least in (("factor", 1.0), ("rope_theta", 1e-9)):
        value = rope.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where} type '{kind}' have {name} {value!r}: it must be a number")
        if not least <= value < math.inf:
            bound = "1 or more" if name == "factor" else "above 0"
            raise ValueError(f"{where} type '{kind}' have {name} {value!r}: it must be {bound}")
    head = int(getattr(text, "head_dim", 0) or text.hidden_size // text.num_attention_heads)
    head = round(head * float(str(rope.get("partial_rotary_factor", 1))))  # what is rotated
    sections = rope.get("mrope_section")
    numbers = sections if isinstance(sections, list) else []
    whole = all(type(x) is int and x >= 0 for x in numbers)
    if len(numbers) != 3 or not whole or sum(numbers) * 2 != head:
        raise ValueError(
            f"{where} this family need mrope_section, three numbers whose sum is half the head "
            f"dimension, {head // 2}; it is {sections}"
        )


def check_processor(path: Path, config: Config, processor: object) -> None:
    """Raise ValueError if the image processor makes other pixels or patches than the trainer does.

    The engine follows preprocessor_config.json, the trainer has one way to prepare an image.
    """
    vision = config.vision_config
    expected = {
        "patch_size": int(vision.patch_size),
        "merge_size": int(vision.spatial_merge_size),
        "temporal_patch_size": int(vision.temporal_patch_size),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
    }
    for name, value in expected.items():
        actual = getattr(processor, name, value)
        if not isinstance(actual, int | float) or abs(actual - value) > 1e-9:
            raise ValueError(
                f"{path}: the image processor's {name} is {actual}, the model and the trainer have "
                f"{value}: the engine would see other pixels; copy preprocessor_config.json of the "
                "model it comes from"
            )
    for name, least in (("image_mean", -1e9), ("image_std", 1e-9)):
        numbers = getattr(processor, name, None)
        values = numbers if isinstance(numbers, list | tuple) else ()
        if len(values) != 3 or not all(isinstance(x, int | float) and x > least for x in values):
            raise ValueError(
                f"{path}: the image processor's {name} is {numbers}, not three numbers"
                + (" above 0" if name == "image_std" else "")
            )


def check_tokens(path: Path, config: Config, tokenizer: Tokenizer) -> None:
    """Raise ValueError if the tokenizer has ids that the embedding or the configuration lacks."""
    vocabulary = tokenizer.get_vocab()
    rows = int(config.get_text_config().vocab_size)
    if beyond := sorted((i, token) for token, i in vocabulary.items() if i >= rows):
        names = ", ".join(f"{token!r} = {i}" for i, token in beyond[:3])
        raise ValueError(
            f"{path}: {len(beyond)} tokens of the tokenizer have ids beyond the {rows} rows of the "
            f"embedding (vocab_size), e.g. {names}: enlarge it (resize_token_embeddings) and save "
            "the model again, or take the tokenizer that belongs to it"
        )
    if not is_known(config.model_type):
        return
    if vocabulary.get(IMAGE_TOKEN) != int(config.image_token_id):
        raise ValueError(
            f"{path}: image_token_id is {config.image_token_id} in config.json, but the "
            f"tokenizer's {IMAGE_TOKEN} is {vocabulary.get(IMAGE_TOKEN)}: the tokenizer belongs to "
            "another model"
        )


def check_same_tokens(path: Path, tokenizer: Tokenizer, other: Path, theirs: Tokenizer) -> None:
    """Raise ValueError if two models that score the same tokens read them differently."""
    if tokenizer.get_vocab() != theirs.get_vocab():
        raise ValueError(
            f"{other} has another tokenizer than {path}: log-probs of the two cannot be compared; "
            "take a reference of the same family"
        )


def disagreements(path: Path, end: str, end_id: int, tokenizer: Tokenizer) -> list[str]:
    """Say where other files name another end of a turn than the chat template writes."""
    texts: list[str] = []
    eos = getattr(tokenizer, "eos_token", None)
    if eos != end:
        texts.append(f"a turn ends with {end}, as the chat template writes; eos_token is {eos}")
    file = path / "generation_config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except FileNotFoundError:
        return texts
    except (ValueError, AttributeError, OSError, RecursionError):
        return [*texts, f"{file.name} cannot be read; ovlt does not use it"]
    ids = values if isinstance(values, list) else [values]
    if values is not None and end_id not in ids:
        texts.append(
            f"{file.name} stops at token {', '.join(map(str, ids))}, not at {end} = {end_id}: "
            "ovlt stops at the latter; other programs that read that file will not"
        )
    return texts


def check_weights(path: Path, config: Config) -> None:
    """Compare the headers of the weight files with the names and shapes of the configuration.

    Raises ValueError for tensors that are missing, unknown, of another shape, or not floats.
    """
    try:
        model = empty_model(config)
    except Exception as error:  # sizes that do not fit together fail anywhere in transformers
        raise ValueError(
            f"{path}/config.json describes no model that can be built ({type(error).__name__}: "
            f"{error})"
        ) from None
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    tied = "lm_head.weight" not in shapes
    family = family_of(config)
    live_name = family.model.live_name
    index = weight_index(path, family)
    if missing := sorted(set(shapes) - set(index)):
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(shapes)} tensors, e.g. {missing[:3]}: the folder "
            f"is incomplete or of another model{_text_hint(missing, shapes)}{_adapter_hint(index)}"
            f"{_others(sorted(set(index) - set(shapes)))}"
        )
    known = set(shapes) | ({"lm_head.weight"} if tied else set())
    left_out = family.model.is_left_out
    unknown = sorted(n for n in set(index) - known if not n.endswith(_COMPUTED) and not left_out(n))
    if unknown:
        raise ValueError(
            f"{path} holds {len(unknown)} tensors that this model does not have, e.g. "
            f"{unknown[:3]}{_adapter_hint(unknown)}: they would be left out; take a folder of "
            f"'{family.name}' weights alone"
        )
    for file in sorted(set(index.values())):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                live, part = live_name(name), tensors.get_slice(name)
                expected = shapes.get(live)
                if expected is not None and part.get_shape() != expected:
                    raise ValueError(
                        f"{file}: {name} has shape {part.get_shape()}, the configuration says "
                        f"{expected}"
                    )
                if live in known and part.get_dtype() not in _DTYPES:
                    raise ValueError(
                        f"{file}: {name} has dtype {part.get_dtype()}; ovlt trains float weights "
                        f"({', '.join(_DTYPES)}): take the folder that it was quantised from"
                    )
    if tied and "lm_head.weight" in index:
        _check_tie(path, index, live_name)


def _text_hint(missing: list[str], names: Mapping[str, list[int]]) -> str:
    tower = [name for name in names if name.startswith("model.visual.")]
    only = " (the whole vision tower: these are text-only weights; take those of the whole model)"
    return only if missing == sorted(tower) else ""


def _adapter_hint(names: Mapping[str, Path] | list[str]) -> str:
    lora = any("lora_" in name or name.startswith("base_model.") for name in names)
    return " (this is a LoRA adapter: merge it first)" if lora else ""


def _others(names: list[str]) -> str:
    """Name what a folder holds instead: a prefix that a wrapper left there is seen at once."""
    return f"; it holds {', '.join(map(repr, names[:2]))} instead" if names else ""


def _check_tie(path: Path, index: Mapping[str, Path], live_name: Callable[[str], str]) -> None:
    """Raise ValueError if a head that config.json ties to the embedding has values of its own."""
    embedding = "model.language_model.embed_tokens.weight"
    heads = []
    for name in ("lm_head.weight", embedding):
        with safe_open(index[name], "pt") as tensors:
            stored = {live_name(n): n for n in tensors.keys()}[name]  # noqa: SIM118
            part = tensors.get_slice(stored)
            rows = part.get_shape()[0]
            places = range(0, rows, max(1, rows // _SAMPLED_ROWS))
            try:
                heads.append([part[i : i + 1].float() for i in places])
            except (SafetensorError, RuntimeError, IndexError) as error:
                raise ValueError(f"{index[name]}: {stored} cannot be read ({error})") from None
    head, tied = heads
    if any(a.shape != b.shape or not a.equal(b) for a, b in zip(head, tied, strict=True)):
        raise ValueError(
            f"{path}: config.json ties head and embedding, but lm_head.weight holds other values, "
            "which would be left out: set tie_word_embeddings to false, or delete that tensor"
        )
