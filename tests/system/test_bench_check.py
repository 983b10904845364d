"""``make bench-check`` compares benchmarks with stored ones; ``make bench`` publishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import check
import pytest
import table

Line = tuple[str, float, float]  # what, milliseconds, MiB
STORED = {
    "grpo": [("ovlt", 10.0, 100.0), ("ovlt_logp", 12.0, 50.0), ("floor", 8.0, 80.0)],
    "attention": [("ovlt", 5.0, 20.0), ("loop", 7.0, 20.0), ("eager", 10.0, 30.0)],
    "resize": [("ovlt", 0.4, 7.0), ("pil", 4.0, 9.0)],
    "rows": [("ovlt", 1.4, 0), ("floor", 0.6, 0)],
}  # fmt: skip


def results(groups: dict[str, list[Line]], threads: int = 2, model: int = 2) -> dict[str, Any]:
    """Return what pytest-benchmark writes, as far as it is read."""
    return {
        "machine_info": {"cpu": {"brand_raw": "Made Up", "family": 26, "model": model}},
        "benchmarks": [
            {
                "group": group,
                "name": f"test[{what}]",
                "extra_info": {
                    "which": what,
                    "peak_mib": mib,
                    "device": "cpu",
                    "threads": threads,
                },
                "stats": {"min": ms / 1e3},
            }
            for group, lines in groups.items()
            for what, ms, mib in lines
        ],
    }


def changed(group: str, what: str, time: float = 1.0, more_mib: float = 0.0) -> dict[str, Any]:
    """Return the stored results with one line's time multiplied and its peak raised."""
    return results(
        {
            name: [
                (w, ms * time, mib + more_mib) if (name, w) == (group, what) else (w, ms, mib)
                for w, ms, mib in lines
            ]
            for name, lines in STORED.items()
        }
    )


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function: fresh results -> exit status and printed text."""

    def run(*fresh: dict[str, Any], options: tuple[str, ...] = ()) -> tuple[int, str]:
        paths = []
        for index, one in enumerate((results(STORED), *fresh)):
            paths.append(tmp_path / f"{index}.json")
            paths[-1].write_text(json.dumps(one))
        return check.main([*options, *map(str, paths)]), capsys.readouterr().out

    return run


def test_equal_results_pass(compare: Any) -> None:
    status, text = compare(results(STORED))
    assert status == 0
    assert "5 lines compared, 0 worse" in text
    assert "|" not in text


def test_a_machine_that_is_slower_at_everything_passes(compare: Any) -> None:
    slow = {group: [(w, 3 * ms, mib) for w, ms, mib in lines] for group, lines in STORED.items()}
    assert compare(results(slow))[0] == 0


def test_a_slower_kernel_is_named_with_its_ratios(compare: Any) -> None:
    status, text = compare(changed("grpo", "ovlt", time=1.5))
    assert status == 1
    assert "| grpo | ovlt | 1.88 | 1.25 | 100 | 100 | 1.50 x slower (limit 1.35) |" in text
    assert "ovlt_logp" not in text


def test_a_faster_floor_is_no_excuse_and_a_slower_peer_no_fault(compare: Any) -> None:
    assert compare(changed("grpo", "floor", time=0.5))[0] == 1
    assert compare(changed("attention", "loop", time=5))[0] == 0


@pytest.mark.parametrize(("time", "status"), [(1.9, 0), (2.1, 1)])
@pytest.mark.parametrize("group", ["resize", "rows"])  # short itself, and by its floor
def test_the_shortest_times_have_a_wider_limit(
    compare: Any, group: str, time: float, status: int
) -> None:
    assert compare(changed(group, "ovlt", time=time))[0] == status


@pytest.mark.parametrize(("mib", "status"), [(65, 0), (67, 1)])
def test_a_peak_may_grow_by_half_and_a_little(compare: Any, mib: float, status: int) -> None:
    found, text = compare(changed("grpo", "ovlt", more_mib=mib))
    assert found == status
    assert ("+67 MiB" in text) == bool(status)


def test_of_two_runs_the_better_one_counts(compare: Any) -> None:
    noisy, other = changed("grpo", "ovlt", time=2), changed("resize", "ovlt", time=3)
    assert compare(noisy)[0] == 1
    assert compare(noisy, other)[0] == 0
    assert compare(noisy, noisy)[0] == 1


def test_a_line_that_is_gone_fails_unless_only_some_were_timed(compare: Any) -> None:
    fewer = results({"grpo": STORED["grpo"]})
    status, text = compare(fewer)
    assert status == 1
    assert "| attention | ovlt |  | 0.50 |  | 20 | gone |" in text
    assert compare(fewer, options=("--some",))[0] == 0
    assert compare(results({"new": STORED["grpo"]}), options=("--some",))[0] == 1


def test_another_number_of_threads_cannot_be_compared(compare: Any) -> None:
    status, text = compare(results(STORED, threads=16))
    assert status == 2
    assert "not comparable" in text


def test_on_another_processor_only_peaks_are_compared(compare: Any) -> None:
    slow = {"grpo": [("ovlt", 90.0, 100.0), ("floor", 8.0, 80.0)]}
    status, text = compare(results(slow, model=17), options=("--some",))
    assert status == 0
    assert "Made Up, family 26 model 17 here" in text
    large = {"grpo": [("ovlt", 10.0, 900.0), ("floor", 8.0, 80.0)]}
    assert compare(results(large, model=17), options=("--some",))[0] == 1


def test_the_stored_results_can_be_read() -> None:
    folder = Path(check.__file__).parent / "results"
    for path in folder.glob("????-??-??-?pu.json"):
        lines = check.figures(json.loads(path.read_text()))
        assert len({group for group, _ in lines}) > 20
        assert all(line.ratio > 0 for line in lines.values())


@pytest.mark.parametrize("page", ["README.md", "docs/kernels.md"])
def test_the_table_goes_to_the_page_that_has_the_markers(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("front page")
    (tmp_path / page).write_text("a <!-- bench-cpu:begin -->old<!-- bench-cpu:end --> b")
    picture = tmp_path / "bench" / "results" / "day.svg"
    picture.parent.mkdir(parents=True)
    picture.write_text("<svg/>")
    stored = results(STORED) | {"datetime": "2026-11-27T00:00"}
    for one in stored["benchmarks"]:
        one["extra_info"] |= {"torch": "2.13.0", "extension": "loaded"}
    assert table.publish(stored, table.groups_of(stored), "cpu", picture) == tmp_path / page
    text = (tmp_path / page).read_text()
    assert text.startswith("a <!-- bench-cpu:begin -->\n2026-11-27, ")
    assert text.endswith("\n<!-- bench-cpu:end --> b")
    assert "old" not in text
    assert "| attention | 5.00 |  | 2.00 | loop | 1.40 | 20.0 | 30.0 |  |" in text
    up = "" if page == "README.md" else "../"
    assert f"![times]({up}bench/results/day.svg)" in text
    assert f"[day.md]({up}bench/results/day.md)" in text
