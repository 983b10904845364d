"""The report of a cycle: its numbers computed another way, damage, hostile text, a browser."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cycle_folders import QUESTIONS, STAGES, make_cycle
from helpers.report_page import HOSTILE, UNSEEN, chromium, words

from ovlt.report.charts import LEFT, RIGHT, WIDTH
from ovlt.report.command import write_report
from ovlt.report.cycle_charts import bars_chart, joined_chart, points_chart
from ovlt.report.cycle_table import cycle_markdown

CONTROLS = [name for name, _, _, comparison, *_ in STAGES if comparison]


def summary_of(run: Path) -> dict[str, Any]:
    write_report(run)
    return json.loads((run / "summary.json").read_text())["cycle"]


def scores(run: Path, stage: str, source: str, mode: str = "sampled") -> np.ndarray:
    questions = json.loads((run / stage / "evaluation.json").read_text())["questions"]
    chosen = [source in ("all", name) for name in questions["source"]]
    return np.array(questions[mode])[chosen]


def paired(run: Path, stage: str, other: str, source: str, mode: str = "sampled") -> list[float]:
    """Return [mean, half width] of the difference, computed by numpy."""
    each = scores(run, stage, source, mode) - scores(run, other, source, mode)
    return [each.mean(), 1.959964 * each.std(ddof=1) / np.sqrt(len(each))]


def in_summary(cycle: dict[str, Any], stage: str, relation: str) -> dict[str, Any]:
    return next(s for s in cycle["stages"] if s["name"] == stage)["difference"][relation]


def test_the_summary_holds_the_accuracies_and_differences_of_the_cycle(tmp_path: Path) -> None:
    run = make_cycle(tmp_path / "run")
    cycle = summary_of(run)
    assert cycle["scopes"] == ["all", "medium", "hard"]
    assert cycle["problems"] == []
    assert "NaN" not in (run / "summary.json").read_text()
    for stage in cycle["stages"]:
        if stage["table"] == "distill":
            continue
        for source in cycle["scopes"]:
            expected = scores(run, stage["name"], source)
            result = stage["accuracy"][source]["sampled"]
            assert result["accuracy"] == pytest.approx(expected.mean())
            half = 1.959964 * expected.std(ddof=1) / np.sqrt(len(expected))
            assert result["ci95"] == pytest.approx(
                [max(0, expected.mean() - half), min(1, expected.mean() + half)]
            )
            assert result["questions"] == QUESTIONS.get(source, sum(QUESTIONS.values()))
    for stage, relation, other in [
        ("sft1", "before", "base_answers"), ("sft2", "before", "grpo1"),
        ("grpo2-hard", "before", "grpo2-medium"), ("grpo2-hard", "own_sft", "sft2"),
        ("grpo2-hard", "iteration_before", "grpo1"), ("sft-only", "reference", "grpo2-hard"),
        ("sft2-continue", "reference", "sft2"), ("sft1-max_words", "reference", "sft1"),
        ("grpo2-continue-medium", "reference", "grpo2-medium"),
        ("grpo2-continue-hard", "reference", "grpo2-hard"),
    ]:  # fmt: skip
        difference = in_summary(cycle, stage, relation)
        assert difference["to"] == other
        for source in cycle["scopes"]:
            for mode in ("greedy", "sampled"):
                result = difference["by_scope"][source][mode]
                expected = paired(run, stage, other, source, mode)
                assert [result["mean"], result["half_width"]] == pytest.approx(expected)
    # The first GRPO stage of iteration 2 is not its end, and GRPO-1 has no iteration before it.
    assert in_summary(cycle, "grpo2-medium", "iteration_before") is None
    assert in_summary(cycle, "grpo1", "iteration_before") is None
    during = cycle["during_grpo"]
    assert [one["name"] for one in during] == ["grpo1", "grpo2-medium", "grpo2-hard"]
    assert during[0]["curves"]["val/greedy"]["steps"][:3] == [0, 8, 16]
    assert [one["name"] for one in cycle["distillation"]] == [
        "distill1", "distill2", "distill1-none"]  # fmt: skip
    assert (
        cycle["distillation"][0]["pass"]
        == json.loads((run / "distill1" / "summary.json").read_text())["pass"]
    )


def test_the_page_shows_the_papers_figures(tmp_path: Path) -> None:
    run = make_cycle(tmp_path / "run")
    page = write_report(run).read_text("utf-8")
    seen = words(page)
    mean, half = paired(run, "grpo2-hard", "grpo1", "hard")
    assert f"+{100 * mean:.1f} \u00b1 {100 * half:.1f}" in seen
    for expected in (
        "Accuracy, %: all (107 questions)", "Accuracy, %: medium (47 questions)",
        "GRPO-2 hard vs GRPO-1", "the previous iteration",
        "Reasoning words, per greedy answer", "maybe", "1.25",
        "GRPO-1 vs SFT-1 the previous stage", "GRPO-2 hard vs SFT-2 its SFT",
        "Reward and length during GRPO",
        "Difference from GRPO-2 hard, points", "SFT-1, nothing filtered vs SFT-1", "pass@4, %",
        "Words per trace: Traces for SFT-2", "Questions left after each filter", "identify",
        "41 its reasoning has more than 500 words",
    ):  # fmt: skip
        assert expected in seen, expected
    assert page.index('id="results"') < page.index('id="cycle"') < page.index('id="stage-1"')
    summary = json.loads((run / "summary.json").read_text())
    changes = {stage["name"]: stage["difference"]["previous"] for stage in summary["stages"]}
    assert changes["sft1"]["to"] == "base_answers"
    assert all(changes[name] is None for name in CONTROLS if name in changes)
    first = page
    assert write_report(run).read_text("utf-8") == first
    (run / "cycle.json").unlink()
    plain = write_report(run).read_text("utf-8")
    assert 'id="cycle"' not in plain
    assert "cycle" not in json.loads((run / "summary.json").read_text())


def test_missing_stages_are_shown_as_waiting(tmp_path: Path) -> None:
    left_out = ["grpo2-hard", "sft1-none", "distill1-none", "distill2"]
    run = make_cycle(tmp_path / "run", without=left_out)
    cycle = summary_of(run)
    status = {stage["name"]: stage["status"] for stage in cycle["stages"]}
    assert [name for name, state in status.items() if state == "waiting"] == [
        "distill2", "grpo2-hard", "distill1-none", "sft1-none"]  # fmt: skip
    assert cycle["problems"] == []
    # No other stage takes the place of the reference that a control waits for.
    assert in_summary(cycle, "sft-only", "reference") is None
    assert in_summary(cycle, "grpo2-continue-medium", "reference")["to"] == "grpo2-medium"
    assert in_summary(cycle, "grpo2-medium", "iteration_before") is None
    seen = words((run / "report.html").read_text("utf-8"))
    assert "GRPO-2 hard waiting" in seen
    assert "Traces for SFT-2 waiting" in seen
    assert "| GRPO-2 hard | waiting | waiting |" in cycle_markdown([run])


def test_many_sources_or_none_are_shown_together(tmp_path: Path) -> None:
    run = make_cycle(tmp_path / "run")
    for path in run.glob("*/evaluation.json"):
        evaluation = json.loads(path.read_text())
        evaluation["questions"]["source"] = [f"s{i % 5}" for i in range(107)]
        path.write_text(json.dumps(evaluation))
    assert summary_of(run)["scopes"] == ["all"]
    for path in run.glob("*/evaluation.json"):
        evaluation = json.loads(path.read_text())
        del evaluation["questions"]["source"]
        path.write_text(json.dumps(evaluation))
    cycle = summary_of(run)
    assert cycle["scopes"] == ["all"]
    assert "GRPO-2 hard vs GRPO-1" in words((run / "report.html").read_text("utf-8"))
    assert "| Stage | seed 0, all |" in cycle_markdown([run])


def test_damage_becomes_a_sentence_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_cycle(tmp_path / "run")
    (run / "grpo1" / "evaluation.json").write_text('{"greedy": 3, "questions"')
    (run / "sft2" / "evaluation.json").write_text('{"questions": {"id": [1], "sampled": [7]}}')
    (run / "grpo2-medium" / "metrics.jsonl").write_text(
        '{"step": -1e99, "metrics": {"reward/mean": 1}}\n{"step": 3, "metrics": {"reward/mean": 1}}'
    )
    summary = json.loads((run / "distill1" / "summary.json").read_text())
    summary |= {"words": [[1, 2]], "dropped": [[-1, "x"]], "keywords": {"wait": float("nan")}}
    (run / "distill1" / "summary.json").write_text(json.dumps(summary))
    (run / "distill2" / "summary.json").write_text("{}]")
    cycle = summary_of(run)
    seen = words((run / "report.html").read_text("utf-8"))
    text = " ".join(cycle["problems"])
    for name in ("grpo1: evaluation.json", "distill2: summary.json", "'words'", "'dropped'",
                 "'keywords'"):  # fmt: skip
        assert name in text
    assert all(" ".join(problem.split()) in seen for problem in cycle["problems"])
    assert in_summary(cycle, "grpo2-hard", "iteration_before") is None
    assert in_summary(cycle, "grpo2-hard", "before")["to"] == "grpo2-medium"
    assert cycle["distillation"][0]["words"] == []
    assert cycle["distillation"][0]["funnel"]
    assert "grpo1: evaluation.json" in cycle_markdown([run])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", []),
        ("[]", []),
        ('{"stages": 3}', []),
        ('{"stages": [7, {"name": "../sft1"}, {"name": "a/b"}, {"name": ".."}]}', []),
        ('{"seed": {}, "stages": [{"name": "sft1", "iteration": NaN, "seconds": "x"}]}', ["sft1"]),
    ],
)
def test_a_damaged_cycle_json_leaves_the_page_readable(
    tmp_path: Path, content: str, expected: list[str]
) -> None:
    run = make_cycle(tmp_path / "run")
    shutil.copytree(run / "sft1", tmp_path / "sft1")  # what ../sft1 would read
    (run / "cycle.json").write_text(content)
    cycle = summary_of(run)
    assert [stage["name"] for stage in cycle["stages"]] == expected
    assert expected or cycle["problems"]
    assert 'id="cycle"' in (run / "report.html").read_text("utf-8")
    assert cycle_markdown([run]).startswith("Accuracy")


def hostile_cycle(run: Path) -> Path:
    """Make a cycle whose every text, of stages, questions and traces, is hostile."""
    make_cycle(run)
    about = json.loads((run / "cycle.json").read_text())
    for stage in about["stages"]:
        stage |= {"title": f"{HOSTILE} {UNSEEN} | {stage['name']}", "status": HOSTILE}
        if stage["comparison"] == "filter":
            stage["comparison"] = '"><img src=x onerror=alert(2)>'
    (run / "cycle.json").write_text(json.dumps(about))
    for path in run.glob("*/evaluation.json"):
        path.write_text(path.read_text().replace('"medium"', json.dumps(HOSTILE)))
    for path in run.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        summary["funnel"] = [[count, HOSTILE + step] for count, step in summary["funnel"]]
        summary["dropped"] = [[9, HOSTILE + UNSEEN]]
        summary["pass"] = {HOSTILE: {"questions": 3, f"pass@{HOSTILE}": 0.5}}
        summary["keywords"] = {'"><script>': 1.5}
        path.write_text(json.dumps(summary))
    return run


def test_hostile_text_stays_text_in_a_browser(tmp_path: Path) -> None:
    run = hostile_cycle(tmp_path / "run")
    out = write_report(run)
    page = out.read_text("utf-8")
    assert "<img src=x" not in page
    assert page.count("<script>") == 1
    assert not set("\u202e\u202c\u200b\x1b") & set(page)
    # Read out a value of each figure: the names come from data in the page, as text.
    probe = """<script>
        for (const figure of document.querySelectorAll("figure[data-readout]"))
          figure.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        document.body.append(document.querySelector("#cycle .step").textContent + "; " +
          document.querySelectorAll("#cycle .figures")[1].querySelector(".step").textContent);
        </script></body>"""
    bare = page.replace("<meta http-equiv", "<meta name=off data-was").replace("</body>", probe)
    (tmp_path / "bare.html").write_text(bare, "utf-8")
    dom = chromium(tmp_path / "bare.html", tmp_path / "profile")
    assert dom.count("<script>") == 2
    assert '<img src="x"' not in dom
    assert "<title>run - ovlt report</title>" in dom
    text = words(html.unescape(dom.rpartition("</script>")[0][-1] + dom))
    assert "Base; " in text
    assert "grpo1, step 0" in text
    assert "\u27e8U+202E\u27e9" in dom
    assert "\u202e" not in dom


def test_the_markdown_table_has_a_column_for_each_seed_and_source(tmp_path: Path) -> None:
    runs = [make_cycle(tmp_path / f"seed{seed}", seed) for seed in (0, 3)]
    text = cycle_markdown(runs)
    rows = {
        line.split(" | ")[0].strip("| "): [cell.strip("| ") for cell in line.split(" | ")[1:]]
        for line in text.splitlines()
        if line.startswith("|")
    }
    columns = [(run, source) for run in runs for source in ("medium", "hard")]
    assert rows["Stage"] == ["seed 0, medium", "seed 0, hard", "seed 3, medium", "seed 3, hard"]
    assert [name for name in rows if " vs " not in name and name[0] not in "-D"][1:] == [
        title for _, kind, _, comparison, title, _ in STAGES if kind != "distill"
    ]
    assert rows["SFT-2"] == [
        f"{100 * scores(run, 'sft2', source, 'greedy').mean():.1f} / "
        f"{100 * scores(run, 'sft2', source).mean():.1f}"
        for run, source in columns
    ]
    for row, stage, other in [
        ("GRPO-1 vs SFT-1", "grpo1", "sft1"), ("GRPO-2 hard vs SFT-2", "grpo2-hard", "sft2"),
        ("GRPO-2 hard vs GRPO-1", "grpo2-hard", "grpo1"),
        ("SFT-1, nothing filtered vs SFT-1", "sft1-none", "sft1"),
        ("RL alone, questions of GRPO-1 vs GRPO-2 hard", "grpo1-only", "grpo2-hard"),
    ]:  # fmt: skip
        for cells, (run, source) in zip(rows[row], columns, strict=True):
            for mode, cell in zip(("greedy", "sampled"), cells.split(" / "), strict=True):
                mean, half = paired(run, stage, other, source, mode)
                plain = cell.strip("*").replace("\u2212", "-").split(" \u00b1 ")
                assert list(map(float, plain)) == pytest.approx([100 * mean, 100 * half], abs=0.051)
                assert cell.startswith("**") == (abs(mean) > half)


def test_the_markdown_table_escapes_titles_and_needs_a_cycle(tmp_path: Path) -> None:
    run = hostile_cycle(tmp_path / "run")
    (run / "grpo1-only" / "evaluation.json").unlink()  # so its status is shown in place of numbers
    text = cycle_markdown([run])
    widths = {len(line.replace("\\|", "").split("|")) for line in text.splitlines() if "|" in line}
    assert widths == {5}  # three cells between four bars
    assert "<" not in text.replace("\\<", "")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"other holds no cycle\.json: run python -m ovlt\.cycle"):
        cycle_markdown([tmp_path / "other"])


def test_joined_lines_do_not_connect_stages() -> None:
    low, high = [(float(i), 1.0) for i in range(1, 41)], [(float(i), 3.0) for i in range(41)]
    chart = joined_chart("x", [("first", {"a": low}), ("none", {}), ("second", {"a": high})])
    assert chart is not None
    line = chart.lines[0]
    assert line.path.count("M") == 2  # no line from stage to stage
    readout = json.loads(chart.readout)
    assert len(readout["steps"]) == 81
    assert readout["names"][39:41] == ["first, step 40", "second, step 0"]
    # The trailing mean starts anew: it never lies between the two levels.
    heights = {
        point.split(",")[1] for segment in line.mean.split("M")[1:] for point in segment.split("L")
    }
    assert len(heights) == 2
    boundary = chart.segments[1].boundary
    assert readout["x"][39] < boundary < readout["x"][40]
    assert joined_chart("x", [("first", {"a": [(1.0, None)]})]) is None
    odd = joined_chart("x", [("first", {"a": [(-1e99, 1.0), (2.0, 2.0), (4.0, 1.5)]})])
    assert odd is not None
    assert all(LEFT <= x <= RIGHT for x, _ in odd.lines[0].dots)


def test_points_and_bars_accept_gaps_and_zeros() -> None:
    chart = points_chart("x", ["a", "b", "c"], {"m": [(0.5, 0.4, 0.7), None, (1.0, 0.9, 1.0)]})
    assert chart is not None
    assert len(chart.lines[0].whiskers) == 2
    assert chart.lines[0].path.count("M") == 2  # a gap stays a gap
    assert json.loads(chart.readout)["names"] == ["a", "c"]
    many = points_chart("x", [str(i) for i in range(15)], {"m": [(0.5, 0.5, 0.5)] * 15})
    assert many is not None
    assert len(many.x_ticks) <= 8
    assert points_chart("x", ["a"], {"m": [None]}) is None
    bars = bars_chart("x", ["a", "b"], [("one", [4.0, 0.0]), ("one", [None, 1.0])])
    assert bars is not None
    widths = [[bar.width for bar in row.bars] for row in bars.rows]
    assert bars.rows[0].bars[0].x + widths[0][0] == pytest.approx(WIDTH - 44)
    assert widths[1] == [0.0, pytest.approx(widths[0][0] / 4, abs=0.1)]
    assert bars_chart("x", ["a"], [("one", [0.0])]) is not None
    assert bars_chart("x", [], [("one", [])]) is None
