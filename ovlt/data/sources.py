"""Read files of rows: validate them and encode their text, without decoding pixels.

Questions have ``problem``, ``answer`` and ``images`` (EasyR1's columns). Conversations have
``messages`` with role and content, and ``images`` (LLaMA-Factory's sharegpt). Files are parquet,
JSONL or JSON. An image is a path (relative to the file), bytes, or the ``{bytes, path}`` of a
Hugging Face image column. A bad row is counted by its reason and left out; too large a share of
them stops the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from ovlt.data.images import (
    BadImage,
    ImageRef,
    PixelLimits,
    image_refs,
    load_image,
    target_size,
    upright,
)
from ovlt.data.tables import BadRow, read_table
from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.chat import BadText, Chat
from ovlt.types import Prompt, Sample


@dataclass(frozen=True)
class Limits(PixelLimits):
    """The sizes that an image and a sample may have."""

    max_tokens: int  # of a prompt (questions) or a whole sample (conversations)


@dataclass(frozen=True)
class Row:
    """A good row: text encoded, image headers read, pixels not decoded."""

    id: str
    source: str
    kind: str
    question: str
    answer: str
    token_ids: np.ndarray  # int64 [tokens]
    loss_mask: np.ndarray | None  # bool [tokens], conversations only
    images: tuple[ImageRef, ...]
    grids: tuple[qwen.Grid, ...]

    @property
    def num_labels(self) -> int:
        """The number of tokens trained on; nothing predicts the first token of a sample."""
        return 0 if self.loss_mask is None else int(self.loss_mask[1:].sum())


@dataclass
class Rows(Sequence[Row]):
    """The good rows of a file, and why the others were left out."""

    path: str
    rows: list[Row]
    bad: Counter[str] = field(default_factory=Counter)  # reason -> rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def report(self) -> str:
        """One line: how many rows are good, and how many were left out for which reason."""
        total = len(self.rows) + sum(self.bad.values())
        if not self.bad:
            return f"{self.path}: {total} rows"
        reasons = "; ".join(f"{n} x {reason}" for reason, n in self.bad.most_common())
        return f"{self.path}: {len(self.rows)} of {total} rows are good; left out: {reasons}"

    def require(self, max_bad_share: float) -> Rows:
        """Return self. Raises ValueError if no row is left or too large a share is bad."""
        total = len(self.rows) + sum(self.bad.values())
        if total == 0:
            raise ValueError(f"{self.path} has no rows: the dataset is empty")
        share = sum(self.bad.values()) / total
        if not self.rows or share > max_bad_share:
            raise ValueError(
                f"{self.report()}. {share:.1%} of the rows are bad, more than "
                f"data.max_bad_share = {max_bad_share:.1%}: fix the file or raise the limit"
            )
        return self


def load_questions(
    path: str | Path, chat: Chat, limits: Limits, *, suffix: str = "", limit: int = 0
) -> Rows:
    """Read rows with ``problem``, ``answer``; optionally ``images``, ``source``, ``kind``, ``id``.

    ``suffix`` is appended to every question; ``limit`` > 0 stops after as many good rows. Raises
    ValueError if the file cannot be read.
    """

    def convert(raw: dict[str, object], names: _Names) -> Row:
        question, answer = raw.get("problem"), raw.get("answer")
        if not isinstance(question, str) or not question.strip():
            raise BadRow("no 'problem' text")
        if not isinstance(answer, str) or not answer.strip():
            raise BadRow("'answer' is not a non-empty string")
        images = image_refs(raw.get("images"), Path(path).parent)
        grids = _grids(images, chat, limits)
        return Row(
            id=names.id,
            source=names.source,
            kind=names.kind,
            question=question,
            answer=answer.strip(),
            token_ids=chat.prompt_ids(question + suffix, grids),
            loss_mask=None,
            images=images,
            grids=grids,
        )

    return _load(path, convert, limits, limit)


def load_conversations(path: str | Path, chat: Chat, limits: Limits, *, limit: int = 0) -> Rows:
    """Read rows with ``messages`` (role, content) and optionally ``images``, ``source``, ``id``.

    ``limit`` and errors as in ``load_questions``.
    """

    def convert(raw: dict[str, object], names: _Names) -> Row:
        messages = raw.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRow("no 'messages' list")
        for message in messages:
            good = isinstance(message, dict) and isinstance(message.get("content"), str)
            if not good or message.get("role") not in ("system", "user", "assistant"):
                raise BadRow("a message lacks a known role or a text content")
        images = image_refs(raw.get("images"), Path(path).parent)
        grids = _grids(images, chat, limits)
        token_ids, loss_mask = chat.conversation_ids(messages, grids)
        return Row(
            id=names.id,
            source=names.source,
            kind=names.kind,
            question=messages[0]["content"],
            answer="",
            token_ids=token_ids,
            loss_mask=loss_mask,
            images=images,
            grids=grids,
        )

    return _load(path, convert, limits, limit)


class _Names(NamedTuple):
    """What a row is called and counted as."""

    id: str
    source: str
    kind: str


def _names(raw: dict[str, object], index: int, path: Path) -> _Names:
    return _Names(
        id=f"{path.stem}/{index}" if raw.get("id") in (None, "") else str(raw["id"]),
        source=str(raw.get("source") or path.stem),
        kind=str(raw.get("kind") or ""),
    )


def _load(
    path: str | Path,
    convert: Callable[[dict[str, object], _Names], Row],
    limits: Limits,
    limit: int,
) -> Rows:
    result = Rows(str(path), [])
    for index, raw in enumerate(read_table(path)):
        if limit and len(result) >= limit:
            break
        try:
            if isinstance(raw, BadRow):
                raise raw
            if not isinstance(raw, dict):
                raise BadRow("row is not an object")
            row = convert(raw, _names(raw, index, Path(path)))
            if len(row.token_ids) > limits.max_tokens:
                raise BadRow(f"longer than {limits.max_tokens} tokens")
        except (BadRow, BadText, BadImage) as error:
            result.bad[str(error)] += 1
            continue
        result.rows.append(row)
    return result


def _grids(images: tuple[ImageRef, ...], chat: Chat, limits: Limits) -> tuple[qwen.Grid, ...]:
    grids = []
    for ref in images:
        with ref.open() as header:
            height, width, _ = upright(header)
        grids.append(qwen.image_grid(chat.config, *target_size(height, width, limits)))
    return tuple(grids)


def bad_images(rows: Sequence[Row], limits: PixelLimits, workers: int) -> dict[int, str]:
    """Decode every image once and return the rows that hold a broken one: {row index: reason}.

    Done before training, so that every rank leaves out the same rows and the order of the rest is
    fixed from the start.
    """

    def check(index: int) -> str:
        try:
            _decode(rows[index], limits)
        except BadImage as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers) as pool:
        verdicts = list(pool.map(check, range(len(rows)), chunksize=64))
    return {i: reason for i, reason in enumerate(verdicts) if reason}


def _decode(row: Row, limits: PixelLimits) -> tuple[np.ndarray, ...]:
    return tuple(load_image(ref, limits) for ref in row.images)


def to_prompt(row: Row, limits: PixelLimits) -> Prompt:
    """Decode and resize the images of a row: from here on it has pixels. Raises BadImage."""
    return Prompt(
        id=row.id,
        source=row.source,
        question=row.question,
        answer=row.answer,
        token_ids=row.token_ids,
        images=_decode(row, limits),
        image_paths=tuple(ref.path for ref in row.images),
    )


def to_sample(row: Row, limits: PixelLimits) -> Sample:
    """Return a labelled conversation as a sample for SFT."""
    assert row.loss_mask is not None
    return Sample(prompt=to_prompt(row, limits), token_ids=row.token_ids, loss_mask=row.loss_mask)
