"""The page of a benchmark result: wrong ones first, two models side by side, all text escaped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import benchmark_files as files

from ovlt.benchmarks.items import Ruling
from ovlt.benchmarks.registry import BENCHMARKS
from ovlt.benchmarks.results import ScoredItem, ScoredSample, write_result
from ovlt.report.benchmark import write_page
from ovlt.report.command import main

HOSTILE = "</pre><script>alert(1)</script>\u202e"


def result(folder: Path, data: Path, rights: dict[str, bool | None]) -> Path:
    items: list[ScoredItem] = []
    for row in files.MATHVISION:
        right = rights.get(row["id"], True)
        ruling = Ruling(right, HOSTILE, "test", "nobody" if right is None else "rule")
        sample = ScoredSample(f"{row['id']} {HOSTILE}", 3, True, ruling, ("a reply",))
        keep = {k: v for k, v in row.items() if k not in ("decoded_image", "image")}
        items.append(ScoredItem(row["id"], keep, (sample,)))
    facts = {"benchmark": "MathVision", "name": "mathvision:test", "split": "test",
             "style": "official", "model": str(folder), "data": str(data)}  # fmt: skip
    write_result(folder, BENCHMARKS["mathvision"], items, facts)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    files.write(files.MATHVISION, tmp_path / "data/test.parquet")
    return tmp_path / "data"


def test_wrong_ones_come_first_with_their_pictures(data: Path, tmp_path: Path) -> None:
    page = write_page(result(tmp_path / "a", data, {"6": False, "2521": None})).read_text()
    order = re.findall(r"<h2>(\S+)", page)
    assert order == ["6", "2521", "4", "5", "2830"]
    assert page.count("data:image/jpeg;base64,") == 5
    assert "<option>subject: solid geometry</option>" in page
    assert page.count('data-verdicts="wrong undecided"') == 1


def test_two_models_stand_side_by_side(data: Path, tmp_path: Path) -> None:
    first = result(tmp_path / "a", data, {"6": False})
    second = result(tmp_path / "b", data, {"4": False})
    page = write_page(first, other=second).read_text()
    assert page.count("<section>") == 10
    assert 'data-verdicts="wrong only-second"' in page
    assert 'data-verdicts="right only-first"' in page


def test_text_of_a_model_never_becomes_markup(data: Path, tmp_path: Path) -> None:
    page = write_page(result(tmp_path / "a", data, {})).read_text()
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("<script>") == 1


def test_without_the_benchmarks_files_the_page_has_no_pictures(tmp_path: Path) -> None:
    folder = result(tmp_path / "a", tmp_path / "gone", {})
    main([str(folder), "--out", str(tmp_path / "page.html")])
    assert "data:image" not in (tmp_path / "page.html").read_text()
