"""Results on disk: what a killed or changed run finds there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovlt.config.load import load_recipe
from ovlt.distill.phases import Phase, generation_settings
from ovlt.distill.shards import PhaseFolders, Shards

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


def shards_of(folder: Path, phase: Phase, *overrides: str) -> Shards:
    """The records of a phase, with a teacher, as a recipe with ``overrides`` opens them."""
    recipe = load_recipe(None, ["--distill.teacher=t", *overrides])
    shared = generation_settings(recipe.distill, recipe.model, recipe.engine, {})
    return PhaseFolders(folder, recipe.distill, shared, {}).shards(phase)


MODEL, CAPTIONER, TEACHER = (
    f"--{key}.thinks="
    for key in (
        "model.chat_template_kwargs",
        "distill.captioner_chat_template_kwargs",
        "distill.teacher_chat_template_kwargs",
    )
)


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ([TEACHER + "true"], [TEACHER + "false"], "teacher_chat_template_kwargs.thinks"),
        ([TEACHER + "true"], [], "teacher_chat_template_kwargs.thinks"),
        ([], [TEACHER + "true"], "teacher_chat_template_kwargs.thinks"),
        ([CAPTIONER + "true"], [CAPTIONER + "1.5"], "captioner_chat_template_kwargs.thinks"),
        ([MODEL + "true"], [MODEL + "false"], "model.chat_template_kwargs.thinks"),
        (
            [MODEL + "true"],
            [MODEL + "true", "--distill.captioner_chat_template_kwargs={}"],
            "model.chat_template_kwargs.thinks",
        ),
    ],
)
def test_other_keywords_of_a_chat_template_are_refused_by_name(
    tmp_path: Path, before: list[str], now: list[str], name: str
) -> None:
    shards_of(tmp_path, "answers", *before).write([record(0)])
    assert shards_of(tmp_path, "answers", *before).done() == {0}
    with pytest.raises(ValueError, match=rf"made with another (.*, )?{name}(,.*)?: put them back"):
        shards_of(tmp_path, "answers", *now)


def test_captions_do_not_depend_on_the_keywords_of_the_teacher(tmp_path: Path) -> None:
    shards_of(tmp_path, "captions").write([record(0)])
    assert shards_of(tmp_path, "captions", TEACHER + "true").done() == {0}


def test_keywords_of_the_model_do_not_decide_if_the_captioner_has_its_own(tmp_path: Path) -> None:
    own = CAPTIONER + "true"
    shards_of(tmp_path, "captions", own).write([record(0)])
    assert shards_of(tmp_path, "captions", own, MODEL + "true").done() == {0}


def test_records_of_before_there_were_keywords_of_the_teacher_are_continued(tmp_path: Path) -> None:
    shards_of(tmp_path, "answers").write([record(0)])
    path = tmp_path / "answers" / "settings.json"
    settings = json.loads(path.read_text())
    old = {key: value for key, value in settings.items() if "chat_template_kwargs" not in key}
    path.write_text(json.dumps(old))
    assert shards_of(tmp_path, "answers").done() == {0}


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
