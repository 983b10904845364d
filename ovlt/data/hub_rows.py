"""Rows of a dataset on the Hugging Face Hub, through the ``datasets`` library (the extra ``hub``).

The library fetches the files and writes them as Arrow into its cache; from there on they are local
files. Code that comes with a dataset is never run: the library has no such thing any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ovlt.system.hub import hub_name, unreachable


def hub_files(path: str | Path) -> list[Path]:
    """Return the Arrow files of ``hf://owner/name:split``, in order. Raises ValueError.

    What the library's cache lacks is fetched, unless HF_HUB_OFFLINE is set.
    """
    name = hub_name(path)
    datasets = _library(path)
    config, revision = name.config or None, name.revision or None
    try:
        splits = [name.split]
        if not name.split:
            splits = datasets.get_dataset_split_names(name.repo, config, revision=revision)
    except Exception as error:  # of the network, the Hub and the files: many kinds
        raise unreachable(path, error) from None
    if len(splits) != 1:
        raise ValueError(
            f"{path} has splits {', '.join(splits)}: name one, as in {path}:{splits[0]}"
        )
    [split] = splits
    if "[" in split or "+" in split:
        raise ValueError(f"{path}: name one whole split, without '[' or '+'")
    try:
        rows = datasets.load_dataset(
            name.repo, config, split=split, revision=revision, keep_in_memory=False
        )
        files = [Path(entry["filename"]) for entry in rows.cache_files]
    except Exception as error:
        raise unreachable(path, error) from None
    if not files:
        raise ValueError(f"{path} has no rows: the dataset is empty")
    return files


def _library(path: str | Path) -> Any:
    try:
        import datasets  # here: optional, and a second to import
    except ImportError:
        raise ValueError(
            f"{path} is read through the datasets library, which is not installed: "
            "pip install 'ovlt[hub]', or download the files and give their path"
        ) from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets
