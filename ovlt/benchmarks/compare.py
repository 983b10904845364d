"""Two models, or three styles, on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ovlt.benchmarks.results import ScoredItem
from ovlt.benchmarks.stats import mcnemar, paired_difference

_SHOWN = 200  # items named in a table of differences


@dataclass(frozen=True)
class PairedComparison:
    """Model a against model b on the questions that both were asked."""

    questions: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    p: float  # McNemar's
    difference: float
    half_width: float  # of the 95 % interval

    def sentence(self) -> str:
        """Say the comparison in one line."""
        low, high = self.difference - self.half_width, self.difference + self.half_width
        return (
            f"{100 * self.accuracy_a:.1f} % against {100 * self.accuracy_b:.1f} % on "
            f"{self.questions} questions: {100 * self.difference:+.1f} points "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]; {self.only_a} only here, {self.only_b} only "
            f"there, McNemar p = {self.p:.3g}"
        )


def compare(a: Sequence[ScoredItem], b: Sequence[ScoredItem]) -> PairedComparison:
    """Compare two results question by question; of several samples the first decides McNemar.

    Raises ValueError if they share no question, or disagree about a label.
    """
    others = {item.id: item for item in b}
    pairs = [(item, others[item.id]) for item in a if item.id in others]
    if not pairs:
        raise ValueError("the two results share no question: are they of the same benchmark?")
    for mine, other in pairs:
        if mine.row.get("answer", mine.row.get("gt_answer")) != other.row.get(
            "answer", other.row.get("gt_answer")
        ):
            raise ValueError(
                f"question {mine.id} has another label in the other result: the two were scored "
                "on different releases of the benchmark"
            )
    left, right = [x.mean for x, _ in pairs], [y.mean for _, y in pairs]
    first = [(x.value(0) > 0, y.value(0) > 0) for x, y in pairs]
    only_a = sum(x and not y for x, y in first)
    only_b = sum(y and not x for x, y in first)
    difference, half = paired_difference(left, right)
    count = len(pairs)
    return PairedComparison(
        count, sum(left) / count, sum(right) / count, only_a, only_b, mcnemar(only_a, only_b),
        difference, half,
    )  # fmt: skip


def side_by_side(results: Mapping[str, Sequence[ScoredItem]]) -> str:
    """Return Markdown: each style's accuracy on the same responses, and where they part."""
    lines = ["# The same responses by each style's rules", "", "| style | right | undecided |",
             "|---|---:|---:|"]  # fmt: skip
    for style, items in results.items():
        open_ = sum(s.ruling.by == "nobody" for item in items for s in item.samples)
        share = 100 * sum(item.mean for item in items) / max(1, len(items))
        lines.append(f"| {style} | {share:.1f} % | {open_} |")
    styles = list(results)
    by_id = [dict(zip(styles, row, strict=True)) for row in zip(*results.values(), strict=True)]
    parted = [row for row in by_id if len({item.mean for item in row.values()}) > 1]
    lines += ["", f"They part on {len(parted)} of {len(by_id)} questions."]
    if parted:
        lines += ["", "| id | answer | " + " | ".join(styles) + " |"]
        lines += ["|---|---|" + "---|" * len(styles)]
    for row in parted[:_SHOWN]:
        first = row[styles[0]]
        answer = str(first.row.get("answer", first.row.get("gt_answer", "")))
        cells = [_verdict(item) for item in row.values()]
        lines.append(f"| {_cell(first.id)} | {_cell(answer)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _verdict(item: ScoredItem) -> str:
    if not item.samples:
        return "not asked"
    ruling = item.samples[0].ruling
    word = {True: "right", False: "wrong", None: "open"}[ruling.right]
    return f"{word}: {_cell(str(ruling.extracted))}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())[:60]
