"""The order in which rows are seen: one seeded permutation per epoch, resumed by one number."""

from __future__ import annotations

import numpy as np


class Sampler:
    """Draw batches of row indices without end; the position is all there is to save.

    The order depends on (seed, epoch, number of rows) alone: not on ranks, workers, or anything
    drawn elsewhere.
    """

    def __init__(self, num_rows: int, seed: int, position: int = 0):
        if num_rows < 1:
            raise ValueError("a sampler needs at least one row: the dataset is empty")
        self.num_rows = num_rows
        self.seed = seed
        self.position = position
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def at(self, position: int, count: int) -> list[int]:
        """Return ``count`` row indices from ``position`` on; they may span two epochs."""
        return [self._at(position + i) for i in range(count)]

    def peek(self, count: int) -> list[int]:
        """Return the next ``count`` row indices without moving on."""
        return self.at(self.position, count)

    def take(self, count: int) -> list[int]:
        """Return the next ``count`` row indices and move on."""
        rows = self.peek(count)
        self.position += count
        return rows

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_rows)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = generator.permutation(self.num_rows)
            self._epoch = epoch
        return int(self._order[offset])
