"""Results of generation on disk: one JSONL file for each batch of questions, complete or not there.

A run that is killed loses the batches that were being made, and makes them again: their seeds
depend on the question alone. A folder remembers what its records were made with, and is refused to
a run that would make others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ovlt.system.files import write_whole

Record = dict[str, Any]  # has "index", the number of its question


class Shards:
    """The records of one phase, in ``folder``.

    Args:
        folder: made where it is missing.
        settings: JSON-able; everything that decides what a record holds.

    Raises:
        ValueError: the folder holds records that were made with other settings, or cannot be read.
    """

    def __init__(self, folder: Path, settings: Record):
        self.folder = folder
        record = folder / "settings.json"
        if record.is_file():
            then = json.loads(record.read_text(encoding="utf-8"))
            differing = sorted(
                key for key in then.keys() | settings.keys() if then.get(key) != settings.get(key)
            )
            if differing:
                raise ValueError(
                    f"{folder} holds records made with another {', '.join(differing)}: put them "
                    "back as they were, choose another distill.stage, or delete the folder"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(settings, indent=2).encode("ascii"))

    def done(self) -> set[int]:
        """Numbers of the questions that have a record."""
        return {record["index"] for record in self.read()}

    def write(self, records: Iterable[Record]) -> None:
        """Keep the records of one batch: all of them or, after a kill, none."""
        records = list(records)
        if not records:
            return
        name = f"{records[0]['index']:08d}-{len(records)}.jsonl"
        text = "".join(json.dumps(record) + "\n" for record in records)
        try:
            write_whole(self.folder / name, text.encode("ascii"))
        except OSError as error:
            raise ValueError(
                f"{self.folder / name} cannot be written ({error.strerror}): make room and start "
                "again; what is there already stays and is not made a second time"
            ) from None

    def read(self) -> list[Record]:
        """All records, by the number of their question, each question once."""
        found: dict[int, Record] = {}
        for path in sorted(self.folder.glob("*-*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        record = json.loads(line)
                        found.setdefault(int(record["index"]), record)
                    except (ValueError, KeyError, TypeError):
                        raise ValueError(
                            f"line {number} of {path} is no record: delete the file, and its "
                            "questions are asked again"
                        ) from None
        return [found[index] for index in sorted(found)]
