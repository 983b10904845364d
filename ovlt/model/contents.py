"""What a model folder holds, in digests: weights, configuration, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ovlt.model.load import ModelFolder
from ovlt.model.weights import COMPANIONS, weight_files
from ovlt.system.digest import digest_of, file_digest

# Files below this size are read whole; of a tensor in a larger one, its ends and its middle are:
# training changes every value of a tensor, so replaced weights are seen. A folder of 15 GB takes
# some 2,500 reads of 4 KiB.
_WHOLE_BYTES = 64 << 20
_BLOCK = 4096
# Not what decides a run: the sampling defaults are not used, the template has its own digest.
_LEFT_OUT = ("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json")
_OF_LIBRARY = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


def model_contents(folder: ModelFolder, key: str) -> dict[str, str]:
    """Return the digests of a model folder by what they are of; ``key`` begins each name."""
    path = folder.path
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    decisive = {name: value for name, value in config.items() if name not in _OF_LIBRARY}
    companions = [
        part
        for name in COMPANIONS
        if name not in _LEFT_OUT and (path / name).is_file()
        for part in (name, (path / name).read_bytes())
    ]
    return {
        f"{key}: weights": digest_of(
            part for file in weight_files(path) for part in (file.name, _of_tensors(file))
        ),
        f"{key}: config.json": digest_of([json.dumps(decisive, sort_keys=True)]),
        f"{key}: tokenizer and processor": digest_of(companions),
        f"{key}: chat template": digest_of([json.dumps(folder.tokenizer.chat_template)]),
    }


def folder_digest(folder: ModelFolder) -> str:
    """Return one digest of all that ``model_contents`` tells apart."""
    return digest_of(model_contents(folder, "").values())


def _of_tensors(file: Path) -> str:
    if file.stat().st_size <= _WHOLE_BYTES:
        return file_digest(file)
    return digest_of(_samples(file))


def _samples(file: Path) -> Iterator[bytes]:
    """Yield the header of a safetensors file and pieces of each tensor."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        header = data.read(length)
        yield header
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for _, entry in sorted(entries.items()):
            begin, end = entry["data_offsets"]
            for start in (begin, (begin + end - _BLOCK) // 2, end - _BLOCK):
                data.seek(8 + length + max(begin, start))
                yield data.read(min(_BLOCK, end - begin))
