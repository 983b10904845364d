"""Model folders that a recipe names by their id on the Hugging Face Hub: ``hf://owner/name``.

Nothing asks the network unless a recipe says ``hf://``. With ``HF_HUB_OFFLINE=1`` only what has
been downloaded before is found.
"""

from __future__ import annotations

import re

SCHEME = "hf://"
# Weights and what the tokenizer and processors need: no code, no pickles.
FILES = ("*.json", "*.jinja", "*.safetensors", "merges.txt")
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def is_hub_name(text: str) -> bool:
    """Return whether a recipe's path names a repository of the Hub."""
    return text.startswith(SCHEME)


def download(text: str, files: tuple[str, ...] = FILES) -> str:
    """Return the local folder of ``hf://owner/name`` or ``hf://owner/name@revision``.

    Files that are not in the cache are downloaded; ranks of one machine wait for each other.
    Raises ValueError.
    """
    # Here, because their import takes a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = _NAME.fullmatch(text)
    if not match:
        raise ValueError(f"{text}: write hf://owner/name or hf://owner/name@revision")
    repository, revision = match.groups()
    try:
        return snapshot_download(repository, revision=revision, allow_patterns=list(files))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{text} is not in the cache and the Hub cannot be reached ({_first(error)}): check "
            "the name, the network, HF_HUB_OFFLINE and HF_ENDPOINT, or give a local folder"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{text} cannot be downloaded ({_first(error)}): check the name and revision; for a "
            "gated repository log in with `hf auth login`"
        ) from None


def _first(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
