"""Benchmarks read the files that people have, and check themselves before they ask anything."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from helpers import benchmark_files as files

from ovlt.benchmarks.data import BenchmarkData, read_benchmark
from ovlt.benchmarks.items import STYLES
from ovlt.benchmarks.registry import BENCHMARKS, checked_settings, chosen

EVERY = [(b.name, split) for b in BENCHMARKS.values() for split in b.splits]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write_all(tmp_path_factory.mktemp("benchmarks"))


def read(root: Path | str, name: str, split: str = "") -> BenchmarkData:
    [(benchmark, split)] = chosen(f"{name}:{split}" if split else name)
    return read_benchmark(benchmark, split, str(root), strict=False)


@pytest.mark.parametrize(("name", "split"), EVERY)
def test_every_split_is_read_from_a_folder_of_repositories(
    root: Path, name: str, split: str
) -> None:
    data = read(root, name, split)
    assert data.items
    for item, images in zip(data.items, data.images(data.items), strict=True):
        assert tuple(images) == item.images
    assert data.check  # a few rows are not the benchmark


@pytest.mark.parametrize(("name", "split"), EVERY)
@pytest.mark.parametrize("style", STYLES)
def test_every_prompt_names_only_images_that_the_row_has(
    root: Path, name: str, split: str, style: str
) -> None:
    data = read(root, name, split)
    for item in data.items:
        prompt = data.benchmark.prompt(item, style, frozenset())  # type: ignore[arg-type]
        assert set(prompt.images) <= set(item.images)
        assert prompt.text.count("<image>") == len(prompt.images)


def test_a_benchmark_with_other_counts_is_refused_with_both_numbers(root: Path) -> None:
    [(benchmark, split)] = chosen("mathvista")
    with pytest.raises(ValueError, match=r"rows: 1000 expected, 5 found"):
        read_benchmark(benchmark, split, str(root))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in files.MATHVISION]
    files.write(rows, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"row 0 has no column answer; it has id, question"):
        read(tmp_path, "mathvision", "test")


def test_an_image_folder_beside_json_is_read_and_a_missing_image_named(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "decoded_image"} for row in files.MATHVISION]
    (tmp_path / "data").mkdir()
    (tmp_path / "images").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data/test.jsonl").write_text(lines)
    for row in rows:
        (tmp_path / row["image"]).write_bytes(files.picture(1)["bytes"])
    assert len(read(tmp_path, "mathvision", "test").items) == len(rows)
    (tmp_path / rows[2]["image"]).unlink()
    with pytest.raises(ValueError, match=r"row 2: image file images/6.jpg is not in"):
        read(tmp_path, "mathvision", "test")


def test_mathvistas_json_object_of_records_is_read(tmp_path: Path) -> None:
    rows = {
        row["pid"]: {k: v for k, v in row.items() if k not in ("pid", "decoded_image")}
        for row in files.MATHVISTA
    }
    (tmp_path / "testmini.json").write_text(json.dumps(rows))
    (tmp_path / "images").mkdir()
    for row in rows.values():
        (tmp_path / row["image"]).write_bytes(files.picture(1)["bytes"])
    assert [item.id for item in read(tmp_path, "mathvista").items] == ["1", "2", "3", "4", "5"]


def test_a_dataset_of_the_hub_is_read_without_decoding_its_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[tuple[str, ...], str]] = []

    def load(*names: str, split: str) -> datasets.Dataset:
        calls.append((names, split))
        table = datasets.Dataset.from_list(files.MATHVISION)
        return table.cast_column("decoded_image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = read("", "mathvision", "test")
    assert [item.images for item in data.items] == [(1,)] * 5
    stored = files.MATHVISION[0]["decoded_image"]["bytes"]
    assert next(iter(data.images(data.items)))[1].data == stored
    assert set(calls) == {(("MathLLMs/MathVision",), "test")}


def test_a_hub_that_cannot_be_reached_is_one_sentence_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: str, split: str) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"ConnectionError: offline.*name a folder"):
        read("", "emma", "math")


def test_one_folder_may_join_the_configurations(tmp_path: Path) -> None:
    rows = [row for part in files.EMMA.values() for row in part]
    whole = [row | {"options": row["options"] or None} for row in rows]
    files.write(whole, tmp_path / "All/test.parquet")
    assert len(read(tmp_path, "emma", "test").items) == len(rows)


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    row = {k: v for k, v in files.MATHVISION[0].items() if k != "decoded_image"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row | {"image": "../../etc/passwd"}) + "\n")
    with pytest.raises(ValueError, match="leaves the folder"):
        read(tmp_path, "mathvision", "test")


def test_the_question_of_vision_only_comes_from_another_version(root: Path) -> None:
    [item] = read(root, "mathverse", "vision_only").items
    assert item.row["question"] == ""
    assert str(item.row["question_for_eval"]).startswith("Find angle 1.")


def test_emmas_images_stand_at_their_tags_and_may_stand_twice(root: Path) -> None:
    data = read(root, "emma", "chemistry")
    prompt = data.benchmark.prompt(data.items[0], "official", frozenset())
    assert prompt.images == (1, 1)
    assert "Picture 1: <image> and again Picture 2: <image>" in prompt.text
    assert "L: o11\n" in prompt.text
    coding = read(root, "emma", "coding")
    prompt = coding.benchmark.prompt(coding.items[0], "official", frozenset())
    assert prompt.images == (1, 2, 3, 4, 5)
    assert coding.benchmark.labels(coding.items[0].row)["category"] == (
        "Coding: 3D", "Coding: Axis & Scale", "Coding: Alignment, Orientation, & Position",
    )  # fmt: skip


def test_mmmu_pros_images_follow_the_text_in_the_order_of_the_tags(root: Path) -> None:
    data = read(root, "mmmu-pro", "standard10")
    last = next(item for item in data.items if item.id == "test_Music_1")
    prompt = data.benchmark.prompt(last, "official", frozenset())
    assert prompt.images == (2, 1, 2, 3)
    assert prompt.parts[1:] == (2, 1, 2, 3)
    kit = data.benchmark.prompt(last, "vlmevalkit", frozenset())
    assert [part for part in kit.parts if isinstance(part, int)] == [2, 1, 2, 3]
    assert kit.parts[0] == "Question: "


def test_options_that_are_the_letters_are_not_repeated_in_math_vs_prompt(root: Path) -> None:
    data = read(root, "mathvision", "test")
    first, second = (data.benchmark.prompt(i, "official", frozenset()) for i in data.items[:2])
    assert "(A)" not in first.text
    assert "\n(A) <image2>\n(B) <image3>\n" in second.text
    assert first.images == second.images == (1,)


def test_a_mark_of_an_image_in_a_question_is_no_image(tmp_path: Path) -> None:
    row = files.MATHVISION[3] | {"question": "What does <image> mean?"}
    files.write([row], tmp_path / "test.parquet")
    data = read(tmp_path, "mathvision", "test")
    prompt = data.benchmark.prompt(data.items[0], "official", frozenset())
    assert prompt.text.count("<image>") == 1


def test_labels_have_a_hash_that_a_corrected_label_changes(tmp_path: Path, root: Path) -> None:
    changed = [row | {"answer": "B"} for row in files.MATHVISION]
    files.write(changed, tmp_path / "test.parquet")
    assert read(root, "mathvision", "test").labels_hash != read(tmp_path, "mathvision").labels_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mathvsta", "did you mean 'mathvista'"),
        ("mathverse:vision", "vision_only"),
        ("", "no benchmark is named"),
    ],
)
def test_an_unknown_benchmark_or_split_lists_those_that_exist(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(text)


def test_an_unknown_setting_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match="did you mean 'direct'"):
        checked_settings(BENCHMARKS["emma"], frozenset({"dirct"}))
    assert checked_settings(BENCHMARKS["emma"], frozenset({"trunk=30"})) == frozenset()
