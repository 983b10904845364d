"""What a benchmark is made of: items, prompts, rulings, and the one class that a benchmark fills.

A rule is a generator: it yields an ``Ask`` where the judge has to be asked, is sent the reply
(None if there is none), and returns its ``Ruling``. Replies are sent again from the start
(``rule_on``), so that a rule holds no state, runs in any process, and can be resumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ovlt.benchmarks.stats import bootstrap_ci95, mean_ci95, wilson_ci95

StyleName = Literal["official", "openvlthinker", "vlmevalkit"]
STYLES: tuple[StyleName, ...] = ("official", "openvlthinker", "vlmevalkit")

# The columns of a row that prompts and rules read, without its images; checked where it is read.
BenchmarkRow = Mapping[str, object]


@dataclass(frozen=True)
class BenchmarkItem:
    """One question. ``images``: the numbers of its images, as tags name them (1, 2, ...).

    ``place`` is the number of its row in the files; ``data.py`` reads the images from there.
    """

    id: str
    row: BenchmarkRow
    images: tuple[int, ...] = ()
    place: int = 0


@dataclass(frozen=True)
class BenchmarkPrompt:
    """What is sent: pieces of text, and numbers of images where they stand (some stand twice)."""

    parts: tuple[str | int, ...]

    @classmethod
    def images_first(cls, images: Iterable[int], text: str) -> BenchmarkPrompt:
        return cls((*images, text))

    @property
    def images(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if isinstance(part, int))

    @property
    def text(self) -> str:
        """The prompt as ``Chat`` reads it: ``<image>`` for an image, and nowhere else."""
        return "".join(
            "<image>" if isinstance(part, int) else part.replace("<image>", "<image >")
            for part in self.parts
        )


@dataclass(frozen=True)
class Ask:
    """A request to the judge. ``kind`` names its prompt; ``extraction`` is the text it is about."""

    kind: str
    extraction: str = ""


@dataclass(frozen=True)
class Ruling:
    """What a style's rules make of one response.

    Attributes:
        right: None if the rules do not decide and no judge did; counted as wrong, and reported.
        extracted: the answer that the rules found, None if there is none.
        normalised: what that was compared as, if it differs.
        by: who decided. "draw" is a seeded random choice in place of an unseeded official one.
        reason: the rule that decided, in a few words.
    """

    right: bool | None
    extracted: str | None
    reason: str
    by: Literal["rule", "judge", "draw", "nobody"] = "rule"
    normalised: str | None = None


RuleRun = Generator[Ask, str | None, Ruling]
Rule = Callable[[BenchmarkRow, str, frozenset[str]], RuleRun]


def rule_on(
    rule: Rule,
    row: BenchmarkRow,
    response: str,
    replies: Sequence[str | None] = (),
    settings: Iterable[str] = (),
) -> Ruling | Ask:
    """Run a rule with the judge's replies so far; return its ruling, or what it asks next.

    A reply of None says that there is no judge, or that it failed.
    """
    run = rule(row, response, frozenset(settings))
    try:
        asked = next(run)
        for reply in replies:
            asked = run.send(reply)
    except StopIteration as end:
        return end.value
    return asked


@dataclass(frozen=True)
class ScoreRow:
    """One line of a table.

    Attributes:
        units: a value in [0, 1] for each question, figure or pair.
        clusters: what each unit depends on, for the interval of a mean over rows; empty: itself.
    """

    label: str
    units: tuple[float, ...]
    clusters: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return sum(self.units) / len(self.units)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: Wilson's for zeros and ones, the normal one for means of samples."""
        if all(unit in (0.0, 1.0) for unit in self.units):
            return wilson_ci95(int(sum(self.units)), len(self.units))
        mean, half = mean_ci95(self.units)
        return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class ScoreTable:
    """A table of accuracies. Its first row is the one that is compared, unless ``mean`` is there.

    ``mean``: the table's number is the mean of its rows' values, for instance of aAcc, fAcc, qAcc.
    ``measure``: what the values are, if not accuracies.
    """

    title: str
    rows: tuple[ScoreRow, ...]
    mean: str = ""
    measure: str = "accuracy"

    @property
    def number(self) -> float:
        """The table's one number."""
        if self.mean:
            return sum(row.value for row in self.rows) / len(self.rows)
        return self.rows[0].value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ``number``; of a mean by a seeded bootstrap of clusters."""
        if not self.mean:
            return self.rows[0].interval
        return bootstrap_ci95([(row.units, row.clusters) for row in self.rows])


@dataclass(frozen=True)
class Split:
    """A split: its configuration and split on the Hub, the names of its files, and what it holds.

    ``files``: the beginnings of the names of its files; alternatives, each of which may be several.
    ``counts``: (table title, label) -> rows, ("", "") for all, compared before anything is asked.
    ``only``: a column and the values that belong to the split, if its files hold more.
    ``configs``: the configurations that it joins, if more than one.
    """

    config: str
    split: str
    files: tuple[tuple[str, ...], ...]
    counts: Mapping[tuple[str, str], int]
    only: tuple[str, tuple[str, ...]] | None = None
    configs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlainTruth:
    """What a plain answer is compared with where no judge decides (``plain.py``)."""

    answer: str
    options: tuple[str, ...] = ()
    yes_no: bool = False
    is_letter: bool = False


class BenchmarkTask(ABC):
    """One benchmark. A new one is one more file with a subclass, and its line in the registry."""

    name: ClassVar[str]
    title: ClassVar[str]
    hub: ClassVar[str]
    splits: ClassVar[Mapping[str, Split]]  # the first is the default
    columns: ClassVar[tuple[str, ...]]  # without which a row cannot be read
    overlap: ClassVar[str] = ""  # training sets and benchmarks with which it shares questions
    combined: ClassVar[tuple[str, ...]] = ()  # splits whose mean is the published overall
    image_columns: ClassVar[tuple[str, ...]]  # column i holds the image of tag i; "a|b": a, else b
    settings: ClassVar[Mapping[str, str]]  # name -> meaning: what a run may ask for beside a style

    @abstractmethod
    def row_id(self, row: BenchmarkRow) -> str:
        """Return the id of a row. Raises KeyError if a column is missing."""

    @abstractmethod
    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        """Return what the style sends."""

    @abstractmethod
    def rules(self) -> Mapping[StyleName, Rule]:
        """Return the rule of each style."""

    @abstractmethod
    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        """Return table title -> the labels of a row; "" is the table over all rows."""

    def counts(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        """Return what ``Split.counts`` counts of a row: the labels, and what else is checked."""
        return self.labels(row)

    def complete(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        """Fill in what a row takes from others, and drop rows that are not scored."""
        return rows

    def answer(self, row: BenchmarkRow) -> str:
        """Return the label of a row, for the hash of all labels."""
        return str(row.get("answer", ""))

    def plain_truth(self, row: BenchmarkRow) -> PlainTruth | None:
        """Return what ``plain.py`` compares with; None where official rules need no judge."""
        return None

    def tables(self, rows: Sequence[BenchmarkRow], values: Sequence[float]) -> list[ScoreTable]:
        """Return the tables that the benchmark reports, from one value in [0, 1] per row."""
        return grouped([self.labels(row) for row in rows], values)


def grouped(
    labels: Sequence[Mapping[str, tuple[str, ...]]], values: Sequence[float]
) -> list[ScoreTable]:
    """Return the table over all rows, then one per title, its rows sorted by accuracy."""
    groups: dict[str, dict[str, list[float]]] = {}
    for of_row, value in zip(labels, values, strict=True):
        for title, names in of_row.items():
            for name in names:
                groups.setdefault(title, {}).setdefault(name, []).append(value)
    tables = [ScoreTable("overall", (ScoreRow("all", tuple(values)),))]
    for title, parts in groups.items():
        rows = [ScoreRow(name, tuple(units)) for name, units in parts.items()]
        rows.sort(key=lambda row: (-row.value, row.label))
        tables.append(ScoreTable(title, tuple(rows)))
    return tables
