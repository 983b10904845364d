"""Which rollouts the report shows, within a budget of bytes, and their images as data: URIs."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ovlt.report.collect import number
from ovlt.reward.grading import extract_answer

GROUPS_PER_STEP = 6
SAMPLES_PER_GROUP = 16
BYTES_PER_STEP = 2 << 20  # text and images; three steps a stage
FOLD_CHARS = 4000  # what follows is behind a click
CUT_CHARS = 40_000  # what follows is left out
DISAGREEMENTS = 20  # rows of the table of a step
# Parts of the reward "judges" and what they are called.
JUDGES = (("accuracy", "answer"), ("mathruler", "MathRuler"), ("math_verify", "Math-Verify"))
IMAGE_SIDE = 512  # pixels; larger images are shown smaller
IMAGE_BYTES = 64 << 10  # larger files are stored again as JPEG

# What Pillow raises on damaged files, SyntaxError for a broken PNG among them.
_IMAGE_ERRORS = (OSError, ValueError, TypeError, AttributeError, SyntaxError,
                 Image.DecompressionBombError)  # fmt: skip
_STEP_FILE = re.compile(r"step_(\d{6,})\.jsonl")
_IMAGE_NAME = re.compile(r"images/[0-9a-f]{16}\.png")


@dataclass(frozen=True)
class LongText:
    head: str
    rest: str  # folded
    cut: int  # characters left out after it

    @property
    def size(self) -> int:
        return len(self.head) + len(self.rest)


@dataclass(frozen=True)
class ShownImage:
    """An image as a data: URI; one that cannot be shown has a note and no URI."""

    uri: str = ""
    width: int = 0
    height: int = 0
    note: str = ""


@dataclass(frozen=True)
class ShownSample:
    text: LongText
    preview: str
    reward: float | None
    parts: Mapping[str, float | None]  # of the reward
    reason: str
    advantage: float | None
    tone: str  # good, bad or none: the sign of the advantage
    tokens: int | None
    finished: bool


@dataclass(frozen=True)
class ShownGroup:
    id: str
    source: str
    question: LongText
    answer: LongText
    images: Sequence[ShownImage]
    samples: Sequence[ShownSample]
    left_out: int  # samples beyond SAMPLES_PER_GROUP
    reward: float | None  # mean of the samples shown

    @property
    def size(self) -> int:
        """Approximate number of bytes of the group on the page."""
        texts = [self.question, *(sample.text for sample in self.samples)]
        return sum(text.size for text in texts) + sum(len(image.uri) for image in self.images)


@dataclass(frozen=True)
class Disagreement:
    """An answer about which the judges of the reward "judges" differ."""

    given: str
    expected: str
    verdicts: Sequence[bool]  # in the order of JUDGES


@dataclass(frozen=True)
class RolloutStep:
    """The groups shown of one logged step, in the order of the file; ``total`` counts all."""

    step: int
    groups: Sequence[ShownGroup]
    total: int
    damaged: int  # lines that could not be read

    @property
    def disagreements(self) -> Sequence[Disagreement]:
        """Answers of the groups shown on which the judges differ, each text once."""
        rows: dict[tuple[str, str], Disagreement] = {}
        for group in self.groups:
            for sample in group.samples:
                marks = [sample.parts.get(part) for part, _ in JUDGES]
                if None in marks or len(set(marks)) == 1:
                    continue
                text = extract_answer(sample.text.head + sample.text.rest) or ""
                row = Disagreement(text[:200], group.answer.head[:200], [m == 1 for m in marks])
                rows[row.given, row.expected] = row
        return list(rows.values())[:DISAGREEMENTS]


def rollout_steps(stage: Path) -> list[RolloutStep]:
    """Return the first, middle and last logged step of a stage folder.

    Each has at most ``GROUPS_PER_STEP`` groups, and fewer once ``BYTES_PER_STEP`` is reached.
    """
    files = sorted(
        (int(match[1]), path)
        for path in (stage / "rollouts").glob("step_*.jsonl")
        if (match := _STEP_FILE.fullmatch(path.name))
    )
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    return [_read_step(stage, *files[index]) for index in chosen]


def _read_step(stage: Path, step: int, path: Path) -> RolloutStep:
    groups: list[ShownGroup] = []
    total = damaged = size = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            total += 1
            if len(groups) >= GROUPS_PER_STEP or size >= BYTES_PER_STEP:
                continue
            try:
                group = _group(json.loads(line), stage)
            except (ValueError, RecursionError):
                total, damaged = total - 1, damaged + 1
                continue
            size += group.size
            groups.append(group)
    return RolloutStep(step, groups, total, damaged)


def _group(row: object, stage: Path) -> ShownGroup:
    """Read a line of a rollout file. Raises ValueError if it is no group of samples."""
    rows = row.get("samples") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(rows, list):
        raise ValueError("a group of answers is an object with a list of samples")
    samples = [_sample(sample) for sample in rows[:SAMPLES_PER_GROUP]]
    names = row.get("images") or []
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    return ShownGroup(
        id=str(row.get("prompt_id", "")),
        source=str(row.get("source", "")),
        question=long_text(row.get("question")),
        answer=long_text(row.get("answer")),
        images=[_image(stage, name) for name in (names if isinstance(names, list) else [names])],
        samples=samples,
        left_out=len(rows) - len(samples),
        reward=math.fsum(rewards) / len(rewards) if rewards else None,
    )


def _sample(row: object) -> ShownSample:
    parts = row.get("parts", {}) if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(parts, dict):
        raise ValueError("a sample is an object, and so are the parts of its reward")
    advantage = number(row.get("advantage"))
    tokens = number(row.get("tokens"))
    text = long_text(row.get("text"))
    return ShownSample(
        text=text,
        preview=" ".join(text.head[:400].split())[:140],
        reward=number(row.get("reward")),
        parts={str(name): number(value) for name, value in parts.items()},
        reason=str(row.get("reason", "")),
        advantage=advantage,
        tone="none" if not advantage else "good" if advantage > 0 else "bad",
        tokens=None if tokens is None else int(tokens),
        finished=row.get("finished", True) is not False,
    )


def long_text(value: object) -> LongText:
    text = "" if value is None else str(value)
    return LongText(text[:FOLD_CHARS], text[FOLD_CHARS:CUT_CHARS], max(0, len(text) - CUT_CHARS))


def _image(stage: Path, name: object) -> ShownImage:
    """Read an image of a stage; the pattern of its name keeps the path inside the stage folder."""
    if not isinstance(name, str) or not _IMAGE_NAME.fullmatch(name):
        return ShownImage(note="image left out: its name is not images/<16 hex digits>.png")
    try:
        content = (stage / name).read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            width, height = picture.size
            kind = "png"
            if max(width, height) > IMAGE_SIDE or len(content) > IMAGE_BYTES:
                small = picture.convert("RGB")
                small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
                buffer = io.BytesIO()
                small.save(buffer, format="JPEG", quality=85)
                content, kind = buffer.getvalue(), "jpeg"
    except _IMAGE_ERRORS as error:
        return ShownImage(note=f"image {name} cannot be shown ({type(error).__name__})")
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return ShownImage(uri, width, height)
