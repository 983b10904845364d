"""Which files of a folder hold its rows: shards of a split, or what ``datasets`` saved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

_KINDS = (".parquet", ".arrow", ".jsonl", ".json")  # the first of which there are files
# Files beside the rows, of ``datasets``, of LLaMA-Factory and of ``ovlt prepare``.
_NOT_ROWS = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
    "report.json", "config.json", "metadata.json",
}  # fmt: skip
_SHARD = re.compile(r"(?P<split>.+?)[-_.]\d+[-_]of[-_]\d+([-_][0-9a-f]+)?")


def folder_files(path: str | Path) -> list[Path]:
    """Return the files of rows at a path; a folder may have ``:split`` behind it.

    Raises ValueError: nothing is there, no file of rows, or several splits and none is named.
    """
    place, split = Path(path), ""
    if not place.exists() and ":" in str(path):
        head, _, split = str(path).rpartition(":")
        place = Path(head)
    if place.is_file() and not split:
        return [place]
    if not place.is_dir():
        raise ValueError(
            f"no data file at {path}; give a .parquet, .jsonl or .json file of rows, a folder of "
            "them, or hf://owner/name:split"
        )
    return _of_folder(place, split)


def _of_folder(folder: Path, split: str) -> list[Path]:
    snapshots = folder / "snapshots"  # a folder in the Hub's cache
    if snapshots.is_dir():
        names = sorted(entry.name for entry in snapshots.iterdir())
        return _of_folder(snapshots / _choice(names, "", folder, "snapshot"), split)
    if (folder / "dataset_dict.json").is_file():  # DatasetDict.save_to_disk
        names = _strings(folder / "dataset_dict.json", "splits")
        return _of_folder(folder / _choice(names, split, folder, "split"), "")
    if (folder / "state.json").is_file():  # Dataset.save_to_disk
        return _saved(folder)
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in _KINDS
        and file.is_file()
        and file.name not in _NOT_ROWS
        and not file.name.startswith((".", "cache-"))
    ]
    kind = next((kind for kind in _KINDS if any(file.suffix == kind for file in files)), "")
    if not kind:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder} holds no .parquet, .arrow, .jsonl or .json file of rows, only {names}"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix == kind:
            shard = _SHARD.fullmatch(file.stem)
            inner = [part for part in file.parent.relative_to(folder).parts if part != "data"]
            name = "/".join([*inner, shard["split"] if shard else file.stem])
            splits.setdefault(name, []).append(file)
    return splits[_choice(list(splits), split, folder, "split")]


def _saved(folder: Path) -> list[Path]:
    """Return the files of a dataset that ``save_to_disk`` wrote."""
    state = _object(folder / "state.json")
    if state.get("_indices_files"):
        raise ValueError(
            f"{folder} was saved with a selection of rows beside them: call flatten_indices() "
            "before save_to_disk()"
        )
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries] if isinstance(entries, list) else []
    files = [folder / Path(str(name)).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ValueError(f"{folder} lacks {', '.join(missing) or 'its Arrow files'}: copy it whole")
    return files


def _choice(names: Sequence[str], choice: str, folder: Path, what: str) -> str:
    if choice in names or (len(names) == 1 and not choice):
        return choice or names[0]
    listed = ", ".join(names) or "none"
    if choice:
        raise ValueError(f"{folder} has no {what} '{choice}'; it has {listed}")
    raise ValueError(f"{folder} has {what}s {listed}: name one, as in {folder}:{names[0]}")


def _object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy the folder anew") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it holds no object): copy the folder anew")
    return value


def _strings(path: Path, key: str) -> list[str]:
    value = _object(path).get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path} names no {key}: copy the folder anew")
    return [Path(str(name)).name for name in value]
