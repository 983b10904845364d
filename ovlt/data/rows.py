"""The good rows of a data file, the same on all ranks, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from ovlt.config import DataConfig, ModelConfig
from ovlt.data.sources import (
    FirstBad,
    Limits,
    Row,
    Rows,
    bad_images,
    load_conversations,
    load_questions,
    to_prompt,
    to_sample,
)
from ovlt.model import sizes
from ovlt.model.load import ModelFolder
from ovlt.system.runtime import Runtime
from ovlt.types import Prompt, Sample


@dataclass(frozen=True)
class GoodRows(Sequence[Row]):
    """Rows whose text and images have been checked; pixels are decoded when they are needed."""

    rows: Sequence[Row]
    limits: Limits

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def max_images(self) -> int:
        """Most images of one row."""
        return max((len(row.images) for row in self.rows), default=0)

    def prompt(self, index: int) -> Prompt:
        """Decode a row of questions: the one place where its pixels appear."""
        return to_prompt(self.rows[index], self.limits)

    def graded(self, index: int) -> Prompt:
        """Return a row of questions as a grader needs it, without pixels."""
        return to_prompt(self.rows[index], self.limits, pixels=False)

    def sample(self, index: int) -> Sample:
        """Decode a row of conversations."""
        return to_sample(self.rows[index], self.limits)


@dataclass(frozen=True)
class RowReader:
    """Reads data files for one model. Every method is collective and raises ValueError."""

    runtime: Runtime
    model: ModelConfig
    data: DataConfig
    folder: ModelFolder

    def questions(
        self, path: str, *, max_tokens: int, suffix: str = "", limit: int = 0
    ) -> GoodRows:
        """Read a file of questions; ``suffix`` follows ``data.suffix``, ``limit`` 0 reads all."""
        limits = self.limits(max_tokens)
        suffix = self.data.suffix + suffix
        chat = self.folder.chat
        rows = load_questions(
            _given(path), chat, limits, suffix=suffix, limit=limit, ignore=self.data.ignore
        )
        return self._checked(rows, limits)

    def conversations(self, path: str, *, max_tokens: int) -> GoodRows:
        """Read a file of SFT rows."""
        limits = self.limits(max_tokens)
        chat, ignore = self.folder.chat, self.data.ignore
        return self._checked(load_conversations(_given(path), chat, limits, ignore=ignore), limits)

    def limits(self, max_tokens: int) -> Limits:
        """What images and samples may be under this recipe and model."""
        low, high = self.folder.pixel_range
        least, most = self.model.min_pixels or low, self.model.max_pixels
        if least < low or most > high:
            raise ValueError(
                f"model.min_pixels={self.model.min_pixels}, max_pixels={self.model.max_pixels} "
                f"leave the range {low}..{high} of the model's own preprocessor_config.json, so "
                "the engine would resize images again; stay inside that range"
            )
        if least > most:
            raise ValueError(
                f"model.max_pixels={most} is less than the {least} that the model's own "
                f"preprocessor_config.json asks of an image: set model.max_pixels to {4 * least} "
                "or more"
            )
        return Limits(
            factor=sizes.merged_patch(self.folder.config),
            min_pixels=least,
            max_pixels=most,
            max_tokens=max_tokens,
        )

    def _checked(self, rows: Rows, limits: Limits) -> GoodRows:
        """Drop rows whose images cannot be decoded, each rank checking its share, and say why."""
        runtime = self.runtime
        mine = range(runtime.rank, len(rows.rows), runtime.world_size)
        broken = bad_images([rows.rows[i] for i in mine], limits, self.data.workers)
        reports = runtime.gather_json(
            [[mine[i], str(error), error.detail] for i, error in broken.items()]
        )
        bad = {int(i): (str(reason), str(text)) for report in reports for i, reason, text in report}
        for i, (reason, detail) in sorted(bad.items()):
            rows.leave_out(reason, FirstBad(rows.rows[i].number, rows.rows[i].id, detail))
        rows.rows = [row for i, row in enumerate(rows.rows) if i not in bad]
        runtime.say(rows.report())
        return GoodRows(rows.require(self.data.max_bad_share).rows, limits)


def _given(path: str) -> str:
    if not path:
        raise ValueError("no data file given; set it in the recipe or on the command line")
    return path
