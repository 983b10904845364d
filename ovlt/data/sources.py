"""Read files of rows: validate them and encode their text, without decoding pixels.

Questions have ``problem``, ``answer`` and ``images`` (EasyR1's columns). Conversations have
``messages`` with role and content, and ``images`` (LLaMA-Factory's sharegpt). What else is read,
``ovlt/data/contents.py`` says; where rows may lie, ``ovlt/data/tables.py``. A bad row is counted by
its reason and left out; too large a share of them stops the run. Images that lie within the rows
stay there until they are decoded.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, cast, overload

import numpy as np

from ovlt.data.contents import Content, conversation_content, question_content
from ovlt.data.image_refs import BadImage, ImageRef
from ovlt.data.images import PixelLimits, load_image, target_size, upright
from ovlt.data.row_table import BadRow, RowTable
from ovlt.data.tables import open_tables
from ovlt.data.tokens import Tokens, tokens_per_image
from ovlt.data.turns import Turn
from ovlt.model import sizes
from ovlt.model.chat import BadText, Chat
from ovlt.system.hub import hub_name, is_hub_name
from ovlt.system.scratch import Scratch
from ovlt.types import Prompt, Sample

_REASONS = 24  # most reasons that a report lists
_CHECKED_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class Limits(PixelLimits):
    """The sizes that an image and a sample may have."""

    max_tokens: int  # of a prompt (questions) or a whole sample (conversations)


@dataclass(frozen=True)
class Origin:
    """Where rows come from: reads one of them again, for its images and its further columns."""

    table: RowTable
    understand: Callable[[Mapping[str, object], Path, Collection[str]], Content]
    ignore: Collection[str] = ()

    def content(self, place: int) -> Content:
        """Return what the row at a place says. Raises ValueError if the file has changed."""
        return self.of(self.table.read(place))

    def of(self, raw: object) -> Content:
        """Return what a row says. Raises BadRow and BadImage."""
        if isinstance(raw, BadRow):
            raise raw
        if not isinstance(raw, dict):
            raise BadRow("row is not an object")
        try:
            return self.understand(
                cast("dict[str, object]", raw), self.table.path.parent, self.ignore
            )
        except RecursionError:
            raise BadRow("row is nested too deep") from None

    def image_bytes(self, place: int, number: int) -> bytes:
        """Return the encoded bytes of an image of a row."""
        return self.content(place).images[number].read()


@dataclass(frozen=True, slots=True)
class Row:
    """A good row: text encoded, image headers read, pixels not decoded."""

    id: str
    source: str
    kind: str
    question: str
    answer: str
    tokens: Tokens
    images: tuple[ImageRef, ...] = ()
    grids: tuple[sizes.Grid, ...] = ()
    earlier: tuple[Turn, ...] = ()  # of a question: its system prompt and what was said before
    origin: Origin | None = None  # None: nothing is left in the file
    place: int = 0  # in the table of its origin
    number: int = 0  # its place among all rows that were read, good or bad

    @property
    def token_ids(self) -> np.ndarray:
        """The encoded text as int64 [tokens], each image with all its tokens."""
        return self.tokens.ids

    @property
    def loss_mask(self) -> np.ndarray | None:
        """Which tokens are trained on, bool [tokens]; None for a question."""
        return self.tokens.loss_mask

    @property
    def num_labels(self) -> int:
        """The number of tokens trained on; nothing predicts the first token of a sample."""
        return self.tokens.num_labels

    def content(self) -> Content:
        """Return images with their bytes at hand, and the columns that ovlt does not read."""
        if self.origin is not None:
            return self.origin.content(self.place)
        return Content((), self.images)


class _Names(NamedTuple):
    """What a row is called and counted as."""

    number: int  # in the file, from 0
    id: str
    source: str
    kind: str


class FirstBad(NamedTuple):
    """The first row that was left out for a reason."""

    number: int  # in the file, from 0
    id: str
    detail: str  # the path that was tried, the columns that are there


@dataclass
class Rows(Sequence[Row]):
    """The good rows of a file, and why the others were left out."""

    path: str
    rows: list[Row]
    bad: Counter[str] = field(default_factory=Counter)  # reason -> rows
    first: dict[str, FirstBad] = field(default_factory=dict)  # reason -> its first row
    repeated_ids: int = 0  # rows whose id another row of the same source had before

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

    def leave_out(self, reason: str, row: FirstBad) -> None:
        """Count a row as bad."""
        self.bad[reason] += 1
        if reason not in self.first or row.number < self.first[reason].number:
            self.first[reason] = row

    def report(self) -> str:
        """One line: how many rows are good, and how many were left out for which reason."""
        total = len(self.rows) + sum(self.bad.values())
        ids = f"; {self.repeated_ids} ids repeat and have '#' and the row's number added"
        ids = ids if self.repeated_ids else ""
        if not self.bad:
            return f"{self.path}: {total} rows{ids}"
        reasons = "; ".join(self._reason(*item) for item in self.bad.most_common(_REASONS))
        if more := len(self.bad) - _REASONS:
            reasons += f"; and {more} other reasons" if more > 0 else ""
        return f"{self.path}: {len(self.rows)} of {total} rows are good{ids}; left out: {reasons}"

    def _reason(self, reason: str, count: int) -> str:
        text = f"{count} x {reason}"
        if reason not in self.first:
            return text
        number, id, detail = self.first[reason]
        return f"{text} (first: row {number}, id {id[:60]!r}{f', {detail}' if detail else ''})"

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
    path: str | Path,
    chat: Chat,
    limits: Limits,
    *,
    suffix: str = "",
    limit: int = 0,
    ignore: Collection[str] = (),
) -> Rows:
    """Read rows with ``problem``, ``answer``; optionally ``images``, ``source``, ``kind``, ``id``.

    ``suffix`` is appended to every question; ``limit`` > 0 stops after as many good rows;
    ``ignore`` names columns to leave out. Raises ValueError if the file cannot be read.
    """

    def encode(content: Content, grids: Sequence[sizes.Grid]) -> Encoded:
        turns = [*content.turns[:-1], Turn("user", content.turns[-1].text + suffix)]
        return chat.dialogue_ids([turn.message for turn in turns], grids), None

    return _load(path, _Reading(question_content, encode, chat, limits, limit, ignore, Scratch()))


def load_conversations(
    path: str | Path,
    chat: Chat,
    limits: Limits,
    *,
    limit: int = 0,
    ignore: Collection[str] = (),
) -> Rows:
    """Read rows with ``messages`` (role, content) and optionally ``images``, ``source``, ``id``.

    ``limit``, ``ignore`` and errors as in ``load_questions``.
    """

    def encode(content: Content, grids: Sequence[sizes.Grid]) -> Encoded:
        messages = [turn.message for turn in content.turns]
        ids, mask = chat.conversation_ids(messages, grids)
        return ids, _learned(mask, [turn for turn in content.turns if turn.role == "assistant"])

    return _load(
        path, _Reading(conversation_content, encode, chat, limits, limit, ignore, Scratch())
    )


def _learned(mask: np.ndarray, replies: Sequence[Turn]) -> np.ndarray:
    """Return labels without those of the replies that are not to be learned. Raises BadText.

    ``mask`` bool [tokens] is True from the first token of each reply to the token that ends it.
    """
    if all(turn.learned for turn in replies):
        return mask
    if not any(turn.learned for turn in replies):
        raise BadText("no assistant turn of the conversation is learned")
    starts = np.diff(mask.astype(np.int8), prepend=0) == 1  # [tokens], the first of each reply
    number = np.cumsum(starts) - 1  # which reply a labelled token belongs to
    return mask & np.array([turn.learned for turn in replies])[np.maximum(number, 0)]


# Ids int64 [tokens] and, of conversations, labels bool [tokens].
Encoded = tuple[np.ndarray, np.ndarray | None]


class _Reading(NamedTuple):
    """How rows become good rows."""

    understand: Callable[[Mapping[str, object], Path, Collection[str]], Content]
    encode: Callable[[Content, Sequence[sizes.Grid]], Encoded]
    chat: Chat
    limits: Limits
    limit: int
    ignore: Collection[str]
    scratch: Scratch


def _load(path: str | Path, reading: _Reading) -> Rows:
    result = Rows(str(path), [])
    ids: set[tuple[str, str]] = set()
    index = -1
    for table in open_tables(path):
        origin = Origin(table, reading.understand, reading.ignore)
        name = _name(path, table)
        for place, raw in table.rows():
            index += 1
            if reading.limit and len(result) >= reading.limit:
                return result
            names = _names(raw, index, name)
            result.repeated_ids += (names.source, names.id) in ids
            while (names.source, names.id) in ids:
                names = names._replace(id=f"{names.id}#{index}")
            ids.add((names.source, names.id))
            try:
                result.rows.append(_row(origin, place, raw, reading, names))
            except (BadRow, BadText, BadImage) as error:
                detail = getattr(error, "detail", "")
                result.leave_out(str(error), FirstBad(index, names.id, detail))
    return result


def _name(path: str | Path, table: RowTable) -> str:
    """Return what rows of a table are called that do not say it themselves."""
    if is_hub_name(path):
        return hub_name(path).repo.split("/")[1]
    return table.path.stem


def _names(raw: object, index: int, name: str) -> _Names:
    values: dict[str, object] = {}
    if isinstance(raw, dict):
        values = {str(key).strip().casefold(): value for key, value in raw.items()}
    id = values.get("id")
    return _Names(
        number=index,
        id=f"{name}/{index}" if id in (None, "") else str(id),
        source=sys.intern(str(values.get("source") or values.get("data_source") or name)),
        kind=sys.intern(str(values.get("kind") or "")),
    )


def _row(origin: Origin, place: int, raw: object, reading: _Reading, names: _Names) -> Row:
    """Return the good row that ``raw`` is. Raises BadRow, BadText and BadImage."""
    content = origin.of(raw)
    grids = _grids(content.images, reading.chat, reading.limits)
    ids, mask = reading.encode(content, grids)
    if len(ids) > reading.limits.max_tokens:
        raise BadRow(f"longer than {reading.limits.max_tokens} tokens", f"it has {len(ids)} tokens")
    asks = reading.understand is question_content
    images = tuple(
        ref
        if ref.in_file
        else ImageRef(
            ref.path,
            again=functools.partial(origin.image_bytes, place, number),
            digest=blake2b(ref.read(), digest_size=16).digest(),
        )
        for number, ref in enumerate(content.images)
    )
    earlier = content.turns[:-1] if asks else ()
    stays = bool(content.extra) or any(not ref.in_file for ref in images)
    return Row(
        id=names.id,
        source=names.source,
        kind=names.kind,
        question=sys.intern(content.turns[-1 if asks else 0].text),  # many ask the same
        answer=content.answer,
        tokens=Tokens.of(
            ids,
            mask,
            reading.scratch,
            image_id=reading.chat.image_id,
            per_image=tokens_per_image(reading.chat, grids),
        ),
        images=images,
        grids=grids,
        earlier=tuple(turn._replace(text=sys.intern(turn.text)) for turn in earlier),
        origin=origin if stays else None,
        place=place,
        number=names.number,
    )


def _grids(images: tuple[ImageRef, ...], chat: Chat, limits: Limits) -> tuple[sizes.Grid, ...]:
    grids = []
    for ref in images:
        with ref.open() as header:
            height, width, _ = upright(header)
        grids.append(sizes.image_grid(chat.config, *target_size(height, width, limits)))
    return tuple(grids)


def bad_images(rows: Sequence[Row], limits: PixelLimits, workers: int) -> dict[int, BadImage]:
    """Decode every image once and return the rows that hold a broken one: {row index: why}.

    Done before training, so that every rank leaves out the same rows and the order of the rest is
    fixed from the start.
    """

    def check(index: int) -> BadImage | None:
        try:
            to_prompt(rows[index], limits)
        except BadImage as error:
            return error
        return None

    bad: dict[int, BadImage] = {}
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(rows), _CHECKED_AT_ONCE):
            part = range(start, min(start + _CHECKED_AT_ONCE, len(rows)))
            errors = zip(part, pool.map(check, part), strict=True)
            bad |= {index: error for index, error in errors if error is not None}
    return bad


def to_prompt(
    row: Row, limits: PixelLimits, *, token_ids: np.ndarray | None = None, pixels: bool = True
) -> Prompt:
    """Decode and resize the images of a row: from here on it has pixels. Raises BadImage.

    ``token_ids`` replaces the row's own. Without ``pixels`` the prompt has no images, as graders
    of answers need none.
    """
    content = row.content()
    return Prompt(
        id=row.id,
        source=row.source,
        question=row.question,
        answer=row.answer,
        token_ids=row.token_ids if token_ids is None else token_ids,
        images=tuple(load_image(ref, limits) for ref in content.images) if pixels else (),
        image_paths=tuple(map(_shown_path, row.images)),
        extra=content.extra,
    )


def _shown_path(ref: ImageRef) -> str:
    """Return the path of an image, or the name that its row gives; never that of another file."""
    return ref.path if ref.in_file or not os.path.isfile(ref.path) else ""


def to_sample(row: Row, limits: PixelLimits) -> Sample:
    """Return a labelled conversation as a sample for SFT."""
    mask = row.loss_mask
    assert mask is not None
    prompt = to_prompt(row, limits)
    return Sample(prompt=prompt, token_ids=prompt.token_ids, loss_mask=mask)
