"""Names on the Hugging Face Hub, ``hf://owner/name``: the only names a network is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

SCHEME = "hf://"
# What a model needs. Pickled weights (.bin, .pt) are not read, so they are not fetched either.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:]+))?(?:/(?P<config>[^:]+))?(?::(?P<split>.*))?"
)


@dataclass(frozen=True)
class HubName:
    """``hf://owner/name@revision/config:split`` in its parts; what was left out is empty."""

    repo: str
    revision: str = ""
    config: str = ""
    split: str = ""


def is_hub_name(text: str | Path) -> bool:
    """Whether a value of a recipe names the Hub, not a path."""
    return str(text).startswith("hf:/")  # a Path makes one slash of two


def hub_name(text: str | Path) -> HubName:
    """Return the parts of a name on the Hub. Raises ValueError."""
    name = str(text).removeprefix("hf:").lstrip("/").removeprefix("datasets/")
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"'{text}' is no name on the Hugging Face Hub: write hf://owner/name, for rows also "
            "hf://owner/name:split, hf://owner/name/config:split or hf://owner/name@revision:split"
        )
    parts = {key: value or "" for key, value in match.groupdict().items()}
    return HubName(**parts | {"revision": unquote(parts["revision"])})


def model_path(path: str | Path) -> Path:
    """Return a model folder as a path: of a name on the Hub, its copy in the Hub's cache.

    What the cache lacks is fetched, unless HF_HUB_OFFLINE is set. Raises ValueError.
    """
    if not is_hub_name(path):
        return Path(path)
    name = hub_name(path)
    if name.config or name.split:
        raise ValueError(
            f"'{path}': a model on the Hub is hf://owner/name or hf://owner/name@revision"
        )
    from huggingface_hub import snapshot_download  # here: its import takes half a second

    try:
        return Path(
            snapshot_download(
                name.repo, revision=name.revision or None, allow_patterns=list(MODEL_FILES)
            )
        )
    except Exception as error:  # of the network and of the Hub: many kinds, and no common one
        raise unreachable(path, error) from None


def unreachable(name: str | Path, error: Exception) -> ValueError:
    """Return the error to raise if the Hub did not give what was asked for."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines)[:400] or type(error).__name__
    return ValueError(
        f"{name} cannot be had from the Hugging Face Hub ({type(error).__name__}: {reason}): check "
        "the name, the network, HF_HUB_OFFLINE and, for a gated repository, HF_TOKEN; or download "
        "it and give the path of the folder"
    )
