"""The token ids of a row in little memory: put aside, with one place holder for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovlt.model import sizes
from ovlt.model.chat import Chat
from ovlt.system.scratch import Piece, Scratch


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids and labels of a row. A photograph takes a thousand tokens, and here one."""

    piece: Piece  # ids int32, then labels as bool if there are any, of the short form
    length: int  # tokens, of which each image is one
    num_labels: int  # tokens trained on; nothing predicts the first token of a sample
    has_labels: bool
    image_id: int = -1
    per_image: tuple[int, ...] = ()  # tokens of each image

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        mask: np.ndarray | None,
        scratch: Scratch,
        *,
        image_id: int = -1,
        per_image: tuple[int, ...] = (),
    ) -> Tokens:
        """Put aside ids int64 [tokens] and labels bool [tokens]."""
        keep = np.ones(len(ids), dtype=bool)
        if per_image:
            slots = np.flatnonzero(ids == image_id)
            keep[np.delete(slots, np.cumsum([0, *per_image])[:-1])] = False
        data = ids[keep].astype(np.int32).tobytes()
        if mask is not None:
            data += mask[keep].tobytes()
        labels = 0 if mask is None else int(mask[1:].sum())
        length = int(keep.sum())
        return cls(scratch.put(data), length, labels, mask is not None, image_id, per_image)

    def __len__(self) -> int:
        return self.length + sum(self.per_image) - len(self.per_image)

    @property
    def ids(self) -> np.ndarray:
        """All ids, int64 [tokens]."""
        short = self._short_ids(self.piece.read())
        return np.repeat(short, self._repeats(short)).astype(np.int64)

    @property
    def loss_mask(self) -> np.ndarray | None:
        """All labels, bool [tokens]; None if there are none."""
        if not self.has_labels:
            return None
        data = self.piece.read()
        mask = np.frombuffer(data, bool, self.length, 4 * self.length)
        return np.repeat(mask, self._repeats(self._short_ids(data)))

    def _short_ids(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.int32, self.length)

    def _repeats(self, short: np.ndarray) -> np.ndarray:
        repeats = np.ones(self.length, dtype=np.int64)
        if self.per_image:
            repeats[short == self.image_id] = self.per_image
        return repeats


def tokens_per_image(chat: Chat, grids: Sequence[sizes.Grid]) -> tuple[int, ...]:
    """Return how many tokens each image takes."""
    return tuple(sizes.tokens_per_image(chat.config, grid) for grid in grids)
