"""The page of one benchmark result: every question with images, response, extraction and ruling.

Wrong ones first, filtered by category and verdict; a second model's result beside it. The page is
one file that needs no network. Images are those of the benchmark's own files, as long as they are
where they were, and up to a budget of bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ovlt.benchmarks.data import BenchmarkData, read_benchmark
from ovlt.benchmarks.registry import chosen
from ovlt.benchmarks.results import ScoredItem, percent, read_head, read_items
from ovlt.data.images import BadImage, ImageRef
from ovlt.report.page import csp_hash, environment
from ovlt.report.samples import LongText, ShownImage, long_text
from ovlt.system.files import write_whole

_HERE = Path(__file__).parent
_SIDE = 320  # pixels of a picture on the page
_IMAGE_BYTES = 32 << 20  # of all pictures of a page
_HIDDEN = ("tables", "samples")


@dataclass(frozen=True)
class ShownResponse:
    """What one model answered to a question; ``tone`` is good, bad or none (undecided)."""

    text: LongText
    extracted: str
    reason: str
    by: str
    tone: str
    verdict: str
    replies: Sequence[str]


@dataclass(frozen=True)
class ShownQuestion:
    """One question of the page. ``labels``: "title: label" of each category it counts in."""

    id: str
    question: LongText
    options: Sequence[str]
    answer: str
    images: Sequence[ShownImage]
    labels: Sequence[str]
    responses: Sequence[Sequence[ShownResponse]]  # of each model, its samples
    verdicts: str  # words that the filter looks for


def write_page(folder: Path, out: Path | None = None, other: Path | None = None) -> Path:
    """Write the page of a result (default FOLDER/result.html) and return its path.

    ``other`` is the result folder of a second model. Raises ValueError.
    """
    head = read_head(folder)
    items = read_items(folder)
    others = {item.id: item for item in read_items(other)} if other else {}
    names = [str(head.get("model", folder))]
    if other:
        names.append(str(read_head(other).get("model", other)))
    data = _data_of(head)
    items = sorted(items, key=lambda item: item.mean)  # stable: the order of the files within
    images = _Images(data)
    questions = [
        _question(item, [item, *([others[item.id]] if item.id in others else [])], head, images)
        for item in items
    ]
    style, script = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("benchmark.css", "benchmark.js")
    )
    page = (
        environment()
        .get_template("benchmark.html")
        .render(
            title=f"{head.get('benchmark')} ({head.get('split')}), style {head.get('style')}",
            number=_number(head),
            facts=[(key, _said(value)) for key, value in head.items() if key not in _HIDDEN],
            names=names,
            questions=questions,
            labels=_groups(questions),
            style=Markup(style),  # noqa: S704 - our own files, nothing from outside
            script=Markup(script),  # noqa: S704
            style_hash=csp_hash(style),
            script_hash=csp_hash(script),
        )
    )
    out = out or folder / "result.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode("utf-8"))
    return out


def _number(head: Mapping[str, object]) -> str:
    tables = head.get("tables")
    if not isinstance(tables, list) or not tables:
        return ""
    return percent(tables[0]["number"], tables[0]["ci95"])


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return str(value)


def _data_of(head: Mapping[str, object]) -> BenchmarkData | None:
    """Open the benchmark's files, if they are where they were."""
    name, where = str(head.get("name", "")), str(head.get("data", ""))
    if not name or not where:
        return None
    try:
        [(benchmark, split)] = chosen(name)
        return read_benchmark(benchmark, split, where, strict=False)
    except ValueError:
        return None


class _Images:
    """Pictures of questions as data: URIs, until the page's budget of bytes is spent."""

    def __init__(self, data: BenchmarkData | None) -> None:
        self.data, self.spent = data, 0
        self.refs: dict[str, Mapping[int, ImageRef]] = {}

    def of(self, name: str) -> list[ShownImage]:
        if self.data is None:
            return []
        if not self.refs:
            items = self.data.items
            self.refs = {
                item.id: {number: _small(ref) for number, ref in refs.items()}
                for item, refs in zip(items, self.data.images(items), strict=True)
            }
        shown: list[ShownImage] = []
        for ref in self.refs.get(name, {}).values():
            content = ref.data or b""
            if not content:
                shown.append(ShownImage(note="image cannot be shown"))
            elif self.spent + len(content) > _IMAGE_BYTES:
                shown.append(ShownImage(note="image left out: the page is large enough"))
            else:
                self.spent += len(content)
                uri = f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
                shown.append(ShownImage(uri))
        return shown


def _small(ref: ImageRef) -> ImageRef:
    """Return a picture as a small JPEG; without bytes if it cannot be read."""
    try:
        with ref.open() as picture:
            small = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=75)
    except (BadImage, OSError, ValueError, SyntaxError):
        return ImageRef(data=b"")
    return ImageRef(data=buffer.getvalue())


def _question(
    item: ScoredItem, results: Sequence[ScoredItem], head: Mapping[str, object], images: _Images
) -> ShownQuestion:
    row = item.row
    [(benchmark, _)] = chosen(str(head.get("name", "")))
    options = row.get("options", row.get("choices"))
    right = [result.mean > 0 for result in results]
    words = ["right" if right[0] else "wrong"]
    if any(s.ruling.by == "nobody" for s in item.samples):
        words.append("undecided")
    if item.error:
        words.append("unasked")
    if len(right) == 2 and right[0] != right[1]:
        words.append("only-first" if right[0] else "only-second")
    return ShownQuestion(
        id=item.id,
        question=long_text(row.get("question") or row.get("query_wo")),
        options=[str(o) for o in options] if isinstance(options, list) else [str(options or "")],
        answer=benchmark.answer(row),
        images=images.of(item.id),
        labels=[
            f"{title}: {label}"
            for title, labels in benchmark.labels(row).items()
            for label in labels
        ],
        responses=[_responses(result) for result in results],
        verdicts=" ".join(words),
    )


def _responses(item: ScoredItem) -> list[ShownResponse]:
    if item.error:
        return [ShownResponse(long_text(item.error), "", "not asked", "nobody", "none", "", ())]
    return [
        ShownResponse(
            text=long_text(sample.response),
            extracted=str(sample.ruling.extracted),
            reason=sample.ruling.reason,
            by=sample.ruling.by,
            tone={True: "good", False: "bad", None: "none"}[sample.ruling.right],
            verdict={True: "right", False: "wrong", None: "undecided"}[sample.ruling.right],
            replies=[str(reply) for reply in sample.replies],
        )
        for sample in item.samples
    ]


def _groups(questions: Sequence[ShownQuestion]) -> dict[str, list[str]]:
    """Return the labels of all questions by table title, for the filter."""
    groups: dict[str, list[str]] = {}
    for question in questions:
        for label in question.labels:
            title = label.partition(": ")[0]
            if label not in groups.setdefault(title, []):
                groups[title].append(label)
    return {title: sorted(labels) for title, labels in groups.items()}
