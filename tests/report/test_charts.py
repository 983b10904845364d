"""The pieces of the page: invisible characters spelled out, and charts of extreme numbers."""

from __future__ import annotations

import re

from ovlt.report.charts import interval_chart, line_chart, stacked_chart
from ovlt.report.text import visible


def test_visible_keeps_ordinary_text() -> None:
    plain = "Stra\u00dfe\n\t\u6f22\u5b57 \u05e9\u05dc\u05d5\u05dd \u221a2 \U0001f600"
    assert visible(plain) == plain
    assert visible("a\r\nb\rc\u2066\u2028") == (
        "a\nb\u27e8U+000D\u27e9c\u27e8U+2066\u27e9\u27e8U+2028\u27e9"
    )
    assert visible("\x00\udfff").encode("utf-8")


def test_charts_accept_extreme_and_missing_numbers() -> None:
    for values in ([0.0], [1e-30, 2e-30], [5.0, 5.0], [-1e12, 1e12], [1e299, -1e299], [None, 1.0]):
        chart = line_chart("x", {"a": list(enumerate(values, start=1))})
        assert len(chart.y_ticks) >= 2
        coordinates = [float(n) for n in re.findall(r"-?[\d.]+", chart.lines[0].path)]
        assert all(0 <= n <= 400 for n in coordinates)
    spiked = [(float(i), 9.0 if i == 4321 else 1.0) for i in range(20_000)]
    chart = line_chart("x", {"a": spiked})
    assert len(chart.readout) < 40_000
    assert '"9"' in chart.readout
    gap = line_chart("x", {"a": [(1, 1.0), (2, None), (3, 2.0)]})
    assert gap.lines[0].path.count("M") == 2
    layers = stacked_chart("s", {"a": [(7, 1.0)], "b": [(7, None)]}).lines
    assert all(layer.area.startswith("M") for layer in layers)
    assert interval_chart([("a", {})]) is None
