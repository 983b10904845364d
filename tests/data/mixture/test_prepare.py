"""A mixture from folder to files: shares, duplicates, benchmarks, levels, what is written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.source_files import IMAGES, TEXT, cell, image_file, json_file, parquet_file, png
from helpers.tiny import tiny_folder

from ovlt.config import MixtureConfig
from ovlt.data.mixture.prepare import listing, main, prepare
from ovlt.data.sources import Limits, load_conversations, load_questions

COLUMNS = {"problem": TEXT, "answer": TEXT, "images": IMAGES}


def easyr1(folder: Path, n: int, first: int = 0, questions: int = 1) -> str:
    """Write a source of ``n`` images with ``questions`` each and return its folder."""
    rows = [
        {"problem": f"<image>Q {i}, {k}?", "answer": str(k), "images": [cell(first + i)]}
        for i in range(n)
        for k in range(questions)
    ]
    parquet_file(folder / "train-00000-of-00001.parquet", rows, COLUMNS)
    return str(folder)


def mixture(folder: Path, sources: dict[str, Any], **keys: Any) -> MixtureConfig:
    listed = [
        {"source": name, **(value if isinstance(value, dict) else {"path": value})}
        for name, value in sources.items()
    ]
    return MixtureConfig.model_validate({"folder": str(folder), "sources": listed, **keys})


def written(folder: Path, part: str = "train") -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{part}.parquet").to_pylist()


def test_shares_caps_and_a_draw_that_the_seed_alone_decides(tmp_path: Path) -> None:
    sources = {
        "geometry3k": {"path": easyr1(tmp_path / "a", 40), "share": 2},
        "mapqa": {"path": easyr1(tmp_path / "b", 40, 100), "cap": 5},
        "clevr": {"path": easyr1(tmp_path / "c", 3, 200)},
    }
    report = prepare(mixture(tmp_path / "out", sources, total=28))
    rows = written(tmp_path / "out")
    assert Counter(row["source"] for row in rows) == {"geometry3k": 20, "mapqa": 5, "clevr": 3}
    assert report["written"] == {"train": 28}
    assert report["short"] == 0
    # sources alternate: the first half is a mixture too
    assert len({row["source"] for row in rows[:14]}) == 3

    again = tmp_path / "again"
    prepare(mixture(again, sources, total=28))
    assert (again / "train.parquet").read_bytes() == (tmp_path / "out/train.parquet").read_bytes()
    other = tmp_path / "other"
    prepare(mixture(other, sources, total=28, seed=1))
    assert written(other) != rows
    # what is drawn from a source does not depend on the others
    alone = tmp_path / "alone"
    prepare(mixture(alone, {"geometry3k": sources["geometry3k"]}, total=20))
    ids = {row["id"] for row in rows if row["source"] == "geometry3k"}
    assert {row["id"] for row in written(alone)} == ids


def test_the_report_tells_what_became_of_every_row(tmp_path: Path) -> None:
    good = {"problem": "<image>A?", "answer": "1", "images": [cell(1)]}
    rows = [
        good,
        good | {"answer": "2"},  # the same question of the same image
        good | {"images": [cell(2)]},  # of another image: another question
        good | {"problem": "<image>B?", "answer": " "},
        good | {"problem": "<image>C?", "images": [{"bytes": b"no image", "path": None}]},
        good | {"problem": "<image>D?", "images": [{"bytes": None, "path": "gone.png"}]},
        good | {"problem": "<image>E?", "images": [cell(3)]},
        good | {"problem": "<image>F?", "images": [cell(4)]},
    ]
    parquet_file(tmp_path / "a" / "train.parquet", rows, COLUMNS)
    parquet_file(tmp_path / "b" / "train.parquet", rows[:1], COLUMNS)
    bench = json_file(tmp_path / "bench.json", [{"question": "other", "image": "3.png"}])
    image_file(tmp_path / "3.png", 3)
    lines: list[str] = []
    sources = {"geometry3k": str(tmp_path / "a"), "geos": str(tmp_path / "b")}
    sources |= {"mapqa": easyr1(tmp_path / "c", 2, 50)}
    report = prepare(
        mixture(tmp_path / "out", sources, benchmarks=[str(bench)], max_bad_share=1.0),
        lines.append,
    )
    first, second, _ = report["sources"]
    assert first["read"] == 8
    assert first["bad"] == {
        "no answer": 1,
        "image cannot be read (UnidentifiedImageError)": 1,
        "image file is missing": 1,
    }
    assert first["duplicates"] == 1
    assert first["in_benchmark"] == {"same image": 1}
    assert first["usable"] == first["written"]["train"] == 3
    assert (second["duplicates"], second["usable"]) == (1, 0)  # also across sources
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert lines[0].startswith("geometry3k (EasyR1's columns): 8 read, 3 bad, 1 duplicates, 1 in a")
    assert "  1 x same image" in lines[0]


def test_files_are_read_by_the_trainer_as_they_were_written(tmp_path: Path) -> None:
    chat = tiny_folder(tmp_path / "model").chat
    limits = Limits(factor=28, min_pixels=784, max_pixels=100352, max_tokens=300)
    source = {"mapqa": easyr1(tmp_path / "a", 9)}
    prepare(mixture(tmp_path / "p", source, sharegpt=True))
    prepare(mixture(tmp_path / "f", source, images="files"))
    for file in ("p/train.parquet", "f/train.jsonl"):
        rows = load_questions(tmp_path / file, chat, limits).require(0)
        assert {(r.question, r.answer) for r in rows} == {
            (f"<image>Q {i}, 0?", "0") for i in range(9)
        }
        data = {ref.read() for r in rows for ref in r.images}
        assert data == {png(i) for i in range(9)}
    talks = load_conversations(tmp_path / "p/train_sharegpt.jsonl", chat, limits).require(0)
    assert len(talks) == 9
    info = json.loads((tmp_path / "p/dataset_info.json").read_text())["p_train"]
    assert info["columns"] == {"messages": "messages", "images": "images"}
    line = json.loads((tmp_path / "p" / info["file_name"]).read_text().splitlines()[0])
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
    assert line["messages"][1]["content"] == "<answer>0</answer>"
    assert (tmp_path / "p" / line["images"][0]).is_file()


def test_validation_shows_no_image_of_training(tmp_path: Path) -> None:
    source = {"mapqa": easyr1(tmp_path / "a", 20, questions=3)}
    report = prepare(mixture(tmp_path / "out", source, total=30, validation=12))
    train, held = written(tmp_path / "out"), written(tmp_path / "out", "validation")
    assert report["written"] == {"train": len(train), "validation": len(held)}
    assert len(train) == 30
    assert 9 <= len(held) <= 12
    images = [{row["images"][0]["bytes"] for row in rows} for rows in (train, held)]
    assert not images[0] & images[1]
    with pytest.raises(ValueError, match="validation = 60 leaves nothing to train on"):
        prepare(mixture(tmp_path / "out", source, validation=60))


def test_levels_by_source_and_by_question(tmp_path: Path) -> None:
    rates = {"iconqa": 0.1, "mapqa": 0.5, "geos": 0.9}
    sources = {
        name: {"path": easyr1(tmp_path / name, 4, 10 * i), "error_rate": rate}
        for i, (name, rate) in enumerate(rates.items())
    }
    prepare(mixture(tmp_path / "out", sources, levels=["medium", "hard"]))
    got = Counter((row["source"], row["difficulty"]) for row in written(tmp_path / "out"))
    assert got == {("mapqa", "medium"): 4, ("geos", "hard"): 4}

    lines = [
        {"problem": f"Q{i}?", "answer": "1", "source": "mine", "pass_rate": rate}
        | {"images": [f"{i}.png"]}
        for i, rate in enumerate([0.0, 0.25, 0.5, 1.0, 7])
    ]
    for i in range(5):
        image_file(tmp_path / f"{i}.png", i)
    path = tmp_path / "measured.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    report = prepare(
        mixture(tmp_path / "q", {"questions": str(path)}, levels=["hard"], min_pass_rate=0.1)
    )
    [row] = written(tmp_path / "q")
    assert (row["problem"], row["difficulty"], row["pass_rate"]) == ("<image>Q1?", "hard", 0.25)
    [source] = report["sources"]
    assert (source["other_pass_rate"], source["other_level"]) == (1, 2)
    assert source["bad"] == {"pass_rate is not between 0 and 1": 1}
    with pytest.raises(ValueError, match="needs the difficulty of 'mapqa': give its source"):
        prepare(mixture(tmp_path / "x", {"mapqa": easyr1(tmp_path / "m", 1)}, levels=["hard"]))


def test_levels_that_a_model_was_measured_for(tmp_path: Path) -> None:
    sources = {
        name: easyr1(tmp_path / name, 4, 10 * i)
        for i, name in enumerate(["iconqa", "mapqa", "geos"])
    }
    prepare(mixture(tmp_path / "all", sources))
    everything = written(tmp_path / "all")
    right = {"iconqa": 1.0, "mapqa": 0.5, "geos": 0.25}
    questions = {
        "source": [row["source"] for row in everything],
        "id": [row["id"] for row in everything],
        "greedy": [0.0 for _ in everything],
        "sampled": [right[row["source"]] for row in everything],
    }
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"questions": questions}))
    keys = {"pass_rates": [str(path)], "levels": ["medium", "hard"], "min_pass_rate": 0.25}
    prepare(mixture(tmp_path / "some", sources, **keys))
    rows = written(tmp_path / "some")
    assert {(r["source"], r["difficulty"], r["pass_rate"]) for r in rows} == {
        ("mapqa", "medium", 0.5), ("geos", "hard", 0.25),
    }  # fmt: skip
    # rows that were not measured have their source's level, by its measured error rate
    other = {
        "source": ["geos", "mapqa", "iconqa"], "id": ["x", "x", "x"],
        "greedy": [0.0, 1.0, 1.0], "sampled": [0.0, 0.4, 1.0],
    }  # fmt: skip
    path.write_text(json.dumps({"questions": other}))
    prepare(mixture(tmp_path / "hard", sources, pass_rates=[str(path)], levels=["hard"]))
    assert Counter(row["source"] for row in written(tmp_path / "hard")) == {"geos": 4}
    # a single source has no level, but its measured questions have
    path.write_text(json.dumps({"questions": questions}))
    alone = {"geos": sources["geos"]}
    prepare(mixture(tmp_path / "one", alone, pass_rates=[str(path)], levels=["hard"]))
    assert len(written(tmp_path / "one")) == 4
    more = {"geos": easyr1(tmp_path / "more", 6, 20)}  # two questions that were not measured
    report = prepare(mixture(tmp_path / "two", more, pass_rates=[str(path)], levels=["hard"]))
    assert len(written(tmp_path / "two")) == 4
    assert report["sources"][0]["other_level"] == 2
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation.json is not the evaluation.json of ovlt ev"):
        prepare(mixture(tmp_path / "x", sources, pass_rates=[str(path)]))


def test_a_bad_source_stops_before_anything_is_written(tmp_path: Path) -> None:
    rows = [{"problem": f"<image>{i}?", "answer": "", "images": [cell(i)]} for i in range(3)]
    parquet_file(tmp_path / "a" / "train.parquet", rows, COLUMNS)
    sources = {"mapqa": easyr1(tmp_path / "b", 2), "geos": str(tmp_path / "a")}
    with pytest.raises(ValueError, match=r"geos .*: 3 of 3 rows are bad, .* = 90%: 3 x no answer"):
        prepare(mixture(tmp_path / "out", sources))
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_nothing_is_an_error_and_no_file(tmp_path: Path) -> None:
    path = easyr1(tmp_path / "a", 3)
    benchmarks = [str(tmp_path / "a" / "train-00000-of-00001.parquet")]
    with pytest.raises(ValueError, match="no question is left to write"):
        prepare(mixture(tmp_path / "out", {"mapqa": path}, benchmarks=benchmarks))
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.toml"
    path = easyr1(tmp_path / "a", 3)
    recipe.write_text(
        f'[run]\nfolder = "{tmp_path}/run"\n[mixture]\nfolder = "{{folder}}/data"\ntotal = 5\n'
        f'[[mixture.sources]]\nsource = "mapqa"\npath = "{path}"\n'
    )
    main([str(recipe)])
    assert len(written(tmp_path / "run" / "data")) == 3
    assert "2 fewer than asked for" in capsys.readouterr().out
    main(["--list"])
    assert capsys.readouterr().out.strip() == listing()
    for name in ("mapqa", "v2-medium", "lmms-lab/ai2d", "the_cauldron"):
        assert name in listing()
    recipe.write_text('[[mixture.sources]]\nsource = "mapqa"\npth = "x"\n')
    with pytest.raises(SystemExit):
        main([str(recipe)])
    assert "unknown key 'mixture.sources.0.pth'; did you mean 'path'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(recipe), "--mixture.sources=[]"])
    assert "ovlt prepare: no sources" in capsys.readouterr().err


def test_questions_that_share_an_id_have_pass_rates_of_their_own(tmp_path: Path) -> None:
    """D8: four questions of one image under one id; three of them were right."""
    image_file(tmp_path / "1.png", 1)
    rows = [
        {"problem": f"<image>Q{i}?", "answer": "3", "images": ["1.png"], "id": "one", "source": "s"}
        for i in range(4)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chat = tiny_folder(tmp_path / "model").chat
    loaded = load_questions(path, chat, Limits(28, 3136, 100352, 300))
    questions = {
        "id": [row.id for row in loaded],
        "source": [row.source for row in loaded],
        "greedy": [1.0, 1.0, 1.0, 0.0],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({"questions": questions}))
    sources = {"questions": {"path": str(path)}}
    measured = {"pass_rates": [str(tmp_path / "evaluation.json")]}
    prepare(mixture(tmp_path / "out", sources, **measured))
    rates = {row["problem"]: row["pass_rate"] for row in written(tmp_path / "out")}
    assert rates == {"<image>Q0?": 1, "<image>Q1?": 1, "<image>Q2?": 1, "<image>Q3?": 0}
    assert len({row["id"] for row in written(tmp_path / "out")}) == 4
    # What prepare has written keeps its ids when it is measured and prepared again.
    prepared = load_questions(tmp_path / "out" / "train.parquet", chat, Limits(28, 3136, 9**6, 300))
    assert {row.id for row in prepared} == {row["id"] for row in written(tmp_path / "out")}
    assert not prepared.repeated_ids


def test_two_sources_whose_rows_have_the_same_ids_are_told_apart(tmp_path: Path) -> None:
    paths = [easyr1(tmp_path / name, 3, first) for name, first in (("a", 0), ("b", 50))]
    config = MixtureConfig.model_validate(
        {
            "folder": str(tmp_path / "out"),
            "sources": [{"source": "questions", "path": path} for path in paths],
        }
    )
    prepare(config)
    rows = written(tmp_path / "out")
    assert len({(row["source"], row["id"]) for row in rows}) == len(rows) == 6


def test_an_evaluation_whose_ids_repeat_is_refused(tmp_path: Path) -> None:
    questions = {"id": ["a", "a"], "source": ["s", "s"], "greedy": [1, 0]}
    (tmp_path / "old.json").write_text(json.dumps({"questions": questions}))
    sources = {"questions": {"path": easyr1(tmp_path / "a", 3)}}
    with pytest.raises(ValueError, match=r"old\.json measures several questions of s with the id"):
        prepare(mixture(tmp_path / "out", sources, pass_rates=[str(tmp_path / "old.json")]))


@pytest.mark.parametrize("name", ["system", "videos", "messages", "image"])
def test_a_column_that_prepare_would_lose_is_refused_by_name(tmp_path: Path, name: str) -> None:
    image_file(tmp_path / "1.png", 1)
    row = {"problem": "<image>?", "answer": "3", "images": ["1.png"], name: "1.png"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"column '{name}'"):
        prepare(mixture(tmp_path / "out", {"questions": str(tmp_path / "rows.jsonl")}))
