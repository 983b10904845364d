"""Whether the values of a tensor can be read at once.

On a GPU a read waits until the device has done everything before it, and then has nothing to do
until the host has caught up. So the operators look at values only if that is free.
"""

from __future__ import annotations

from torch import Tensor

_FREE = frozenset({"cpu"})  # types of devices


def can_read(tensor: Tensor) -> bool:
    """Return whether reading values of ``tensor`` waits for nothing."""
    return tensor.device.type in _FREE
