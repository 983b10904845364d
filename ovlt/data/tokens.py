"""The token ids of a row in little memory: an image is one place holder until they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.chat import Chat


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids and labels with one place holder per image; a photograph takes a thousand."""

    short_ids: np.ndarray  # int32 [tokens, of which each image is one]
    short_mask: np.ndarray | None = None  # bool, of the same length; None: no labels
    image_id: int = -1
    per_image: tuple[int, ...] = ()  # tokens of each image

    @classmethod
    def of(
        cls, ids: np.ndarray, mask: np.ndarray | None, chat: Chat, grids: Sequence[qwen.Grid]
    ) -> Tokens:
        """Return ids int64 [tokens] and labels bool [tokens] in short."""
        per_image = tuple(qwen.tokens_per_image(chat.config, grid) for grid in grids)
        keep = np.ones(len(ids), dtype=bool)
        slots = np.flatnonzero(ids == chat.image_id)
        starts = np.cumsum([0, *per_image])[:-1]
        keep[np.delete(slots, starts)] = False
        return cls(
            ids[keep].astype(np.int32),
            None if mask is None else mask[keep],
            chat.image_id,
            per_image,
        )

    def __len__(self) -> int:
        return len(self.short_ids) + sum(self.per_image) - len(self.per_image)

    @property
    def ids(self) -> np.ndarray:
        """All ids, int64 [tokens]."""
        return np.repeat(self.short_ids, self._repeats()).astype(np.int64)

    @property
    def loss_mask(self) -> np.ndarray | None:
        """All labels, bool [tokens]."""
        return None if self.short_mask is None else np.repeat(self.short_mask, self._repeats())

    def _repeats(self) -> np.ndarray:
        repeats = np.ones(len(self.short_ids), dtype=np.int64)
        if self.per_image:
            repeats[self.short_ids == self.image_id] = self.per_image
        return repeats
