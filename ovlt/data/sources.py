"""Files of rows -> validated rows, still without pixels.

Questions: ``problem``, ``answer``, ``images`` (EasyR1's columns). Conversations: ``messages`` with
role and content, ``images`` (LLaMA-Factory's sharegpt). Parquet, JSONL or JSON. An image is a
path (relative to the file), bytes, or the ``{bytes, path}`` of a Hugging Face image column.
A bad row is counted by reason and left out; too large a share of them stops the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ovlt.data.images import BadImage, ImageRef, image_refs, load_image, target_size, upright
from ovlt.data.tables import BadRow, read_table
from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.chat import BadText, Chat
from ovlt.types import Prompt, Sample


@dataclass(frozen=True)
class Limits:
    """What an image and a sample may be."""

    factor: int  # pixels: sides become multiples of this
    min_pixels: int
    max_pixels: int
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
        """Tokens trained on; the first token of a sample is predicted by nothing."""
        return 0 if self.loss_mask is None else int(self.loss_mask[1:].sum())


@dataclass
class Rows:
    """The good rows of a file, and what happened to the others."""

    path: str
    rows: list[Row]
    bad: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.rows)

    def report(self) -> str:
        total = len(self.rows) + sum(self.bad.values())
        if not self.bad:
            return f"{self.path}: {total} rows"
        reasons = "; ".join(f"{n} x {reason}" for reason, n in self.bad.most_common())
        return f"{self.path}: {len(self.rows)} of {total} rows are good; left out: {reasons}"

    def require(self, max_bad_share: float) -> Rows:
        """Self, or ValueError when nothing is left or too much is bad."""
        total = len(self.rows) + sum(self.bad.values())
        if total == 0:
            raise ValueError(f"{self.path} has no rows: the dataset is empty")
        share = sum(self.bad.values()) / total
        if not self.rows or share > max_bad_share:
            raise ValueError(
                f"{self.report()}. {share:.1%} of the rows are bad, more than "
                f"data.max_bad_share = {max_bad_share:.1%}: mend the file or raise the limit"
            )
        return self


def load_questions(
    path: str | Path, chat: Chat, limits: Limits, *, suffix: str = "", limit: int = 0
) -> Rows:
    """Rows with ``problem``, ``answer`` and optionally ``images``, ``source``, ``kind``, ``id``."""

    def convert(raw: dict[str, Any], index: int) -> Row:
        question, answer = raw.get("problem"), raw.get("answer")
        if not isinstance(question, str) or not question.strip():
            raise BadRow("no 'problem' text")
        if not isinstance(answer, str) or not answer.strip():
            raise BadRow("'answer' is not a non-empty string")
        images = image_refs(raw.get("images"), Path(path).parent)
        grids = _grids(images, chat, limits)
        token_ids = chat.prompt_ids(question + suffix, grids)
        return _row(raw, index, path, question, answer.strip(), token_ids, None, images, grids)

    return _load(path, convert, limits, limit)


def load_conversations(path: str | Path, chat: Chat, limits: Limits, *, limit: int = 0) -> Rows:
    """Rows with ``messages`` (role, content) and optionally ``images``, ``source``, ``id``."""

    def convert(raw: dict[str, Any], index: int) -> Row:
        messages = raw.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRow("no 'messages' list")
        for message in messages:
            good = isinstance(message, dict) and isinstance(message.get("content"), str)
            if not good or message.get("role") not in ("system", "user", "assistant"):
                raise BadRow("a message lacks a known role or a text content")
        images = image_refs(raw.get("images"), Path(path).parent)
        grids = _grids(images, chat, limits)
        token_ids, mask = chat.conversation_ids(messages, grids)
        return _row(raw, index, path, messages[0]["content"], "", token_ids, mask, images, grids)

    return _load(path, convert, limits, limit)


def _row(
    raw: dict[str, Any],
    index: int,
    path: str | Path,
    question: str,
    answer: str,
    token_ids: np.ndarray,
    mask: np.ndarray | None,
    images: tuple[ImageRef, ...],
    grids: tuple[qwen.Grid, ...],
) -> Row:
    return Row(
        id=f"{Path(path).stem}/{index}" if raw.get("id") in (None, "") else str(raw["id"]),
        source=str(raw.get("source") or Path(path).stem),
        kind=str(raw.get("kind") or ""),
        question=question,
        answer=answer,
        token_ids=token_ids,
        loss_mask=mask,
        images=images,
        grids=grids,
    )


def _load(
    path: str | Path,
    convert: Callable[[dict[str, Any], int], Row],
    limits: Limits,
    limit: int,
) -> Rows:
    result = Rows(str(path), [])
    for index, raw in enumerate(read_table(path)):
        if limit and len(result.rows) >= limit:
            break
        try:
            if isinstance(raw, BadRow):
                raise raw
            if not isinstance(raw, dict):
                raise BadRow("row is not an object")
            row = convert(raw, index)
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
        height, width = target_size(
            height,
            width,
            factor=limits.factor,
            min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels,
        )
        grids.append(qwen.image_grid(chat.config, height, width))
    return tuple(grids)


def bad_images(rows: list[Row], limits: Limits, workers: int) -> dict[int, str]:
    """Decode every image once and say which rows hold one that breaks: {row index: reason}.

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


def _decode(row: Row, limits: Limits) -> tuple[np.ndarray, ...]:
    return tuple(
        load_image(
            ref,
            factor=limits.factor,
            min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels,
        )
        for ref in row.images
    )


def to_prompt(row: Row, limits: Limits) -> Prompt:
    """Decode and resize the row's images: the one place where pixels appear."""
    return Prompt(
        id=row.id,
        source=row.source,
        question=row.question,
        answer=row.answer,
        token_ids=row.token_ids,
        images=_decode(row, limits),
        image_paths=tuple(ref.path for ref in row.images),
    )


def to_sample(row: Row, limits: Limits) -> Sample:
    """A labelled conversation as a sample for SFT."""
    assert row.loss_mask is not None
    return Sample(prompt=to_prompt(row, limits), token_ids=row.token_ids, loss_mask=row.loss_mask)
