"""Results on disk: what a killed or changed run finds there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovlt.distill.shards import Shards

SETTINGS = {"teacher": "models/x", "k": 4}


def record(index: int, text: str = "t") -> dict:
    return {"index": index, "texts": [text]}


def test_what_was_written_is_there_again_and_in_order(tmp_path: Path) -> None:
    first = Shards(tmp_path / "answers", SETTINGS)
    assert first.done() == set()
    first.write([record(4), record(6)])
    first.write([])
    first.write([record(1, "\u2028 line\nbreaks \ud7ff")])
    again = Shards(tmp_path / "answers", SETTINGS)
    assert again.done() == {1, 4, 6}
    assert [r["index"] for r in again.read()] == [1, 4, 6]
    assert again.read()[0]["texts"] == ["\u2028 line\nbreaks \ud7ff"]


def test_a_batch_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write([record(0)])
    (tmp_path / ".00000001-1.jsonl.77").write_text('{"index": 1, "te')
    assert Shards(tmp_path, SETTINGS).done() == {0}


def test_a_question_that_two_batches_answer_counts_once(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write([record(3, "a"), record(5)])
    shards.write([record(3, "b")])
    assert [r["index"] for r in shards.read()] == [3, 5]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Shards(tmp_path, SETTINGS | {"k": 2})
    Shards(tmp_path, SETTINGS).write([record(0)])  # nothing was made with k = 2
    with pytest.raises(ValueError, match="another k: put them back"):
        Shards(tmp_path, SETTINGS | {"k": 8})


def test_damage_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write([record(0), record(1)])
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(ValueError, match=r"line 3 of .* is no record"):
        shards.done()


def test_a_full_disk_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path, SETTINGS)
    shards.write([record(0)])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device.*make room"):
        shards.write([record(1)])
    assert shards.done() == {0}
    assert {p.name for p in tmp_path.iterdir()} == {"settings.json", "00000000-1.jsonl"}
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS
