"""Records on disk: one JSONL file for each batch of questions, complete or not there.

A run that is killed loses the batches that were being made, and makes them again: their seeds
depend on the question alone. A folder remembers what its records were made with and refuses a run
that would make others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from ovlt.config import DistillConfig
from ovlt.distill.phases import Phase, Settings, own_settings
from ovlt.system.files import read_json, write_whole


class Record(TypedDict):
    """The answers of one phase to one question; a dropped question has none."""

    index: int  # of the question in the list of good questions
    dropped: str  # why the question was not asked; empty: it was
    texts: list[str]
    finished: list[bool]  # whether each text ended before the token limit
    tokens: list[int]  # of each text
    scores: NotRequired[list[float]]  # verdict on each answer, 0 or 1
    reasons: NotRequired[list[str]]  # why the grader decided so


class Shards:
    """The records of one phase.

    Args:
        folder: made if it is missing.
        settings: JSON values that decide what a record holds, by name.

    Raises:
        ValueError: the folder holds records that were made with other settings, or is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]):
        self.folder = folder
        path = folder / "settings.json"
        before = read_json(path) if path.is_file() else {}
        keys = before.keys() | settings.keys()
        different = sorted(key for key in keys if before.get(key) != settings.get(key))
        if not different:
            return
        if before and any(folder.glob("*-*.jsonl")):  # a start that made no record binds nobody
            raise ValueError(
                f"{folder} holds records made with another {', '.join(different)}: put them "
                "back as they were, choose another distill.stage, or delete the folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=2).encode("ascii"))

    def done(self) -> set[int]:
        """Return the indices of the questions that have a record."""
        return {record["index"] for record in self.read()}

    def write(self, records: Iterable[Record]) -> None:
        """Write the records of one batch; a kill leaves all of them or none."""
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
        """Return all records in the order of their questions, each question once."""
        records: dict[int, Record] = {}
        for path in sorted(self.folder.glob("*-*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        record = json.loads(line)
                        records.setdefault(int(record["index"]), record)
                    except (ValueError, KeyError, TypeError):
                        raise ValueError(
                            f"line {number} of {path} is no record: delete the file, and its "
                            "questions are asked again"
                        ) from None
        return [records[index] for index in sorted(records)]


@dataclass(frozen=True)
class PhaseFolders:
    """The records of every phase, each in a folder of its own, and what decides them.

    Attributes:
        folder: of the stage that has sampled them.
        config: the recipe's [distill].
        shared: what decides the records of every phase outside [distill].
        graded: what else decides those of the answers.
    """

    folder: Path
    config: DistillConfig
    shared: Settings
    graded: Settings

    def shards(self, phase: Phase) -> Shards:
        """Return the records of a phase. Raises ValueError as ``Shards`` does."""
        settings = own_settings(self.config, phase) | self.shared
        settings |= self.graded if phase == "answers" else {}
        return Shards(self.folder / phase, settings)

    def complete_records(self, phase: Phase, num_questions: int) -> dict[int, Record]:
        """Return the records of a phase by the index of their question.

        Raises ValueError if one of the ``num_questions`` questions has none.
        """
        records: dict[int, Record] = {}
        if (self.folder / phase).is_dir():
            records = {record["index"]: record for record in self.shards(phase).read()}
        if missing := num_questions - len(records):
            raise ValueError(
                f"{missing} of {num_questions} questions have no record in {self.folder / phase}: "
                f"run --distill.phase={phase} first"
            )
        return records
