"""A Hugging Face model folder without its weights: configuration, tokenizer, image processor."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ovlt.model.chat import Chat
from ovlt.model.check import (
    check_config,
    check_processor,
    check_same_tokens,
    check_tokens,
    check_weights,
    disagreements,
)
from ovlt.model.families import is_known, require
from ovlt.model.patchify import Patchify
from ovlt.model.sizes import Config, TextConfig
from ovlt.model.template import banned_ids, rows_without_token
from ovlt.model.tokenizer import MODEL_KEYWORDS, TemplateKeywords, Tokenizer
from ovlt.system.hub import model_path


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a model folder that are not weights."""

    path: Path
    config: Config  # of a text-only model, with a decoder alone: use text_config
    tokenizer: Tokenizer
    patchify: Patchify | None  # None: a text-only model
    pixel_range: tuple[int, int]  # areas in pixels that the folder's own processor does not resize
    chat: Chat
    banned: tuple[int, ...]  # token ids that may never be sampled

    @property
    def text_config(self) -> TextConfig:
        """The decoder's configuration: a table of its own, or the whole of a text-only model's."""
        return self.config.get_text_config()


def open_folder(
    path: str | Path, template: TemplateKeywords | None = None, key: str = MODEL_KEYWORDS
) -> ModelFolder:
    """Read configuration, tokenizer and image processor, and check them and the weights' headers.

    ``hf://owner/name`` is downloaded first. ``template`` are keywords for its chat template, which
    the recipe gives as ``key``. Raises ValueError that says how to fix it.
    """
    from transformers import AutoImageProcessor  # here: its import takes a second

    path = local_folder(path)
    if kind := _model_type(path):
        require(path, kind)  # first: transformers may not know the type at all
    config, tokenizer = _read_config(path)
    require(path, config.model_type)
    check_config(path, config)
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        pixel_range = (int(processor.size["shortest_edge"]), int(processor.size["longest_edge"]))
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(
            f"{path} lacks image processor files, or they are damaged: {_reason(error)}; copy "
            f"preprocessor_config.json of the model it comes from{_video_hint(path)}"
        ) from None
    check_processor(path, config, processor)
    folder = ModelFolder(
        path=path,
        config=config,
        tokenizer=tokenizer,
        patchify=Patchify.from_processor(processor),
        pixel_range=pixel_range,
        chat=_chat(path, tokenizer, config, template, key),
        banned=tuple(banned_ids(config, tokenizer)),
    )
    check_weights(path, config)
    _tell(path, folder)
    return folder


def open_reference(path: str | Path, model: ModelFolder) -> ModelFolder:
    """Open the folder of the KL's reference, ``model`` itself for "". Raises ValueError.

    With the template's keywords of ``model``.
    """
    if not str(path):
        return model
    reference = open_folder(path, model.chat.keywords)
    check_same_tokens(model.path, model.tokenizer, reference.path, reference.tokenizer)
    return reference


def open_text_model(
    path: str | Path, template: TemplateKeywords | None = None, key: str = MODEL_KEYWORDS
) -> ModelFolder:
    """Open the folder of a model that gets text only: any language model that the engine serves,
    or one that ovlt trains.

    ``template`` and ``key`` as for ``open_folder``. Raises ValueError that says how to fix it.
    """
    path = local_folder(path)
    config, tokenizer = _read_config(path)
    if is_known(config.model_type):
        return open_folder(path, template, key)
    folder = ModelFolder(
        path=path,
        config=config,
        tokenizer=tokenizer,
        patchify=None,
        pixel_range=(0, 0),
        chat=_chat(path, tokenizer, config, template, key),
        banned=tuple(rows_without_token(config, tokenizer)),
    )
    _tell(path, folder)
    return folder


def local_folder(path: str | Path) -> Path:
    """Return the folder that a recipe's ``path`` names, downloaded if it is ``hf://owner/name``.

    Raises ValueError if it is not set, not there, or not a model folder.
    """
    text = str(path) if isinstance(path, Path) else path
    if not text:
        raise ValueError(
            "model.path is not set: give the path of a Hugging Face folder (--model.path=...), or "
            "hf://owner/name"
        )
    path = model_path(text)
    if not path.is_dir():
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
            hint = f"; from the Hugging Face Hub it is 'hf://{text}'"
        raise ValueError(
            f"no model folder at '{path}': give the path of a Hugging Face folder with "
            "config.json, *.safetensors, tokenizer and preprocessor files (--model.path=...)"
            f"{hint}"
        )
    if (adapter := path / "adapter_config.json").is_file():
        raise ValueError(
            f"{path} is a LoRA adapter (it has {adapter.name}{_base_of(adapter)}): merge it first, "
            "with peft's merge_and_unload() and save_pretrained() of model and processor, and give "
            f"the merged folder; if the weights are merged already, delete {adapter.name}"
        )
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    return path


def _video_hint(path: Path) -> str:
    """Say that a folder prepares videos but no images, if that is so."""
    if not (path / "video_preprocessor_config.json").is_file():
        return ""
    return " (it has a processor of videos alone: ovlt trains on images)"


def _model_type(path: Path) -> str:
    """Return ``model_type`` of config.json; "" if it cannot be read, which transformers tells."""
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return ""
    return kind if isinstance(kind, str) else ""


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return ""
    return f", for the base {str(base)[:100]!r}"


def _chat(
    path: Path, tokenizer: Tokenizer, config: Config, template: TemplateKeywords | None, key: str
) -> Chat:
    try:
        return Chat(tokenizer, config, template, key)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_config(path: Path) -> tuple[Config, Tokenizer]:
    """Read configuration and tokenizer of a model folder. Raises ValueError."""
    from transformers import AutoConfig, AutoTokenizer  # here: its import takes a second

    try:
        config = cast("Config", AutoConfig.from_pretrained(path, trust_remote_code=False))
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(f"{path}/config.json cannot be read: {_reason(error)}") from None
    if not isinstance(getattr(config.get_text_config(), "vocab_size", None), int):
        raise ValueError(
            f"{path} holds a '{config.model_type}' model, which has no tokens (no vocab_size in "
            "config.json): give the folder of a whole language or vision-language model"
        )
    try:
        tokenizer = cast("Tokenizer", AutoTokenizer.from_pretrained(path, trust_remote_code=False))
    except Exception as error:
        raise ValueError(
            f"{path} lacks tokenizer files, or they are damaged: {_reason(error)}"
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"{path} has a tokenizer in Python only: ovlt needs tokenizer.json (save it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    if template := _processor_template(path):
        tokenizer.chat_template = template
    check_tokens(path, config, tokenizer)
    return config, tokenizer


def _processor_template(path: Path) -> str:
    """Return the template in the processor's own files, which transformers prefers; "" if none.

    In its order: processor_config.json, chat_template.jinja, then chat_template.json of older
    folders.
    """
    for name in ("processor_config.json", "chat_template.jinja", "chat_template.json"):
        file = path / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            template = text if file.suffix == ".jinja" else json.loads(text).get("chat_template")
        except (ValueError, AttributeError, OSError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read: {_reason(error)}") from None
        if template is not None and not isinstance(template, str):
            raise ValueError(f"{file}: its chat_template is not a text")
        if template:
            return template
    return ""


def _reason(error: BaseException) -> str:
    """Return what an error of a library says, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def _tell(path: Path, folder: ModelFolder) -> None:
    """Print, on one rank, in what the files of a folder disagree without harm to a run."""
    if os.environ.get("RANK", "0") == "0":
        for text in disagreements(path, folder.chat.end, folder.chat.end_id, folder.tokenizer):
            print(f"{path}: {text}", flush=True)
