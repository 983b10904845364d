"""Copies of a model folder with one thing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let ``change`` work on the object in a JSON file; a missing file begins as {}."""
    value = json.loads(path.read_text()) if path.is_file() else {}
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Let ``change`` work on the tensors of a folder that has one file of them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def set_template(folder: Path, template: str) -> None:
    """Put the chat template where transformers writes it."""
    edit_json(folder / "processor_config.json", lambda c: c.pop("chat_template", None))
    (folder / "chat_template.jinja").write_text(template)


def rope(folder: Path, **keys: object) -> None:
    """Replace or add (None: remove) keys of the decoder's rope_parameters."""

    def change(config: dict[str, Any]) -> None:
        table = config["text_config"]["rope_parameters"]
        for key, value in keys.items():
            table[key] = value
            if value is None:
                del table[key]

    edit_json(folder / "config.json", change)
