"""A Hugging Face folder -> a sharded, trainable model; and its tokenizer and processor.

No rank ever holds the whole model: the modules are made on the meta device, sharded, and each rank
reads only its own rows of every safetensors file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.chat import Chat
from ovlt.model.patchify import Patchify


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a model folder that are not weights."""

    path: Path
    config: Any
    tokenizer: Any
    patchify: Patchify | None  # None: a model that only reads
    pixel_range: tuple[int, int]  # area that the folder's own processor leaves alone
    chat: Chat
    banned: tuple[int, ...]

    @property
    def text_config(self) -> Any:
        """What is said of the decoder: a table of its own, or, of a model that only reads, all."""
        return self.config.get_text_config()


def open_folder(path: str | Path) -> ModelFolder:
    """Read configuration, tokenizer and image processor. Raises ValueError with the mend."""
    from transformers import AutoImageProcessor

    path = Path(path)
    config, tokenizer = _opened(path)
    if config.model_type != qwen.MODEL_TYPE:
        raise ValueError(
            f"{path} holds a '{config.model_type}' model; ovlt knows '{qwen.MODEL_TYPE}' "
            "(another family is another file beside ovlt/model/qwen2_5_vl.py)"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} lacks image processor files: {error}") from None
    return ModelFolder(
        path=path,
        config=config,
        tokenizer=tokenizer,
        patchify=Patchify.from_processor(processor),
        pixel_range=(processor.size["shortest_edge"], processor.size["longest_edge"]),
        chat=Chat(tokenizer, config),
        banned=tuple(qwen.banned_ids(config, tokenizer)),
    )


def open_reader(path: str | Path) -> ModelFolder:
    """A folder that is only asked in text: any language model that the engine serves, or one of
    ours. Raises ValueError with the mend."""
    path = Path(path)
    config, tokenizer = _opened(path)
    if config.model_type == qwen.MODEL_TYPE:
        return open_folder(path)
    if not tokenizer.chat_template:
        raise ValueError(f"{path} has no chat template, so there is no telling how to ask it")
    rows = int(config.get_text_config().vocab_size)
    return ModelFolder(
        path=path,
        config=config,
        tokenizer=tokenizer,
        patchify=None,
        pixel_range=(0, 0),
        chat=Chat(tokenizer, config),
        banned=tuple(range(len(tokenizer), rows)),  # rows that no token stands behind
    )


def _opened(path: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer of a model folder. Raises ValueError."""
    from transformers import AutoConfig, AutoTokenizer

    if not str(path) or not path.is_dir():
        raise ValueError(
            f"no model folder at '{path}': give the path of a Hugging Face folder with "
            "config.json, *.safetensors, tokenizer and preprocessor files (--model.path=...)"
        )
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    try:
        return AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} lacks configuration or tokenizer files: {error}") from None


def weight_index(path: Path) -> dict[str, Path]:
    """Live parameter name -> safetensors file that holds it. Raises ValueError."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(
            {path / name for name in json.loads(index.read_text())["weight_map"].values()}
        )
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{path} has no *.safetensors files; ovlt reads no pickled weights")
    names: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    names[qwen.live_name(name)] = file
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is missing, truncated or not a safetensors file ({error}); "
                "copy or download it again"
            ) from None
    return names


def read_weights(model: nn.Module, path: Path) -> None:
    """Fill a (sharded) model from a folder, each rank reading its own slices.

    Raises ValueError when a parameter is missing or has another shape than the configuration says.
    """
    from safetensors import safe_open

    index = weight_index(path)
    parameters = dict(model.named_parameters())
    missing = sorted(set(parameters) - set(index))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(parameters)} tensors, e.g. {missing[:3]}: "
            "the folder is incomplete or of another model"
        )
    by_file: dict[Path, list[str]] = {}
    for name in parameters:
        by_file.setdefault(index[name], []).append(name)
    for file, names in by_file.items():
        with safe_open(file, "pt") as tensors, torch.no_grad():
            on_disk = {qwen.live_name(n): n for n in tensors.keys()}  # noqa: SIM118
            for name in names:
                source = tensors.get_slice(on_disk[name])
                target = parameters[name]
                if tuple(source.get_shape()) != tuple(target.shape):
                    raise ValueError(
                        f"{file}: {name} has shape {source.get_shape()}, the configuration says "
                        f"{list(target.shape)}"
                    )
                _copy_slice(target, source)


def _copy_slice(target: Tensor, source: Any) -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(target, DTensor):
        target.copy_(source[:])
        return
    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    local = target.to_local()
    if local.numel():
        where = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        local.copy_(source[where])
