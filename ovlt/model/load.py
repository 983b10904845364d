"""A Hugging Face model folder without its weights: configuration, tokenizer, image processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.chat import Chat
from ovlt.model.patchify import Patchify
from ovlt.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a model folder that are not weights."""

    path: Path
    config: qwen.Config  # of a text-only model, with a decoder alone: use text_config
    tokenizer: Tokenizer
    patchify: Patchify | None  # None: a text-only model
    pixel_range: tuple[int, int]  # areas in pixels that the folder's own processor does not resize
    chat: Chat
    banned: tuple[int, ...]  # token ids that may never be sampled

    @property
    def text_config(self) -> qwen.TextConfig:
        """The decoder's configuration: a table of its own, or the whole of a text-only model's."""
        return self.config.get_text_config()


def open_folder(path: str | Path) -> ModelFolder:
    """Read configuration, tokenizer and image processor.

    Raises ValueError that says how to fix it.
    """
    from transformers import AutoImageProcessor  # here: its import takes a second

    path = Path(path)
    config, tokenizer = _read_config(path)
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


def open_text_model(path: str | Path) -> ModelFolder:
    """Open the folder of a model that gets text only: any language model that the engine serves,
    or one of this family.

    Raises ValueError that says how to fix it.
    """
    path = Path(path)
    config, tokenizer = _read_config(path)
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
        banned=tuple(range(len(tokenizer), rows)),  # rows of the head without a token
    )


def _read_config(path: Path) -> tuple[qwen.Config, Tokenizer]:
    """Read configuration and tokenizer of a model folder. Raises ValueError."""
    from transformers import AutoConfig, AutoTokenizer  # here: its import takes a second

    if not str(path) or not path.is_dir():
        raise ValueError(
            f"no model folder at '{path}': give the path of a Hugging Face folder with "
            "config.json, *.safetensors, tokenizer and preprocessor files (--model.path=...)"
        )
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    try:
        config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} lacks configuration or tokenizer files: {error}") from None
    return cast("qwen.Config", config), cast("Tokenizer", tokenizer)
