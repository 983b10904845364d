"""Which samples share their prompt: by what they hold, not by what they are said to answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shared_prompts(
    prompts: Sequence[np.ndarray], images: Sequence[Sequence[object]]
) -> list[list[int]]:
    """Return the indices of the samples that share their prompt: one list for each prompt.

    Args:
        prompts: the token ids before the first trained one, int [S] arrays. Empty ones share
            nothing.
        images: of each sample, as pixels or as what names them.
    """
    groups: list[list[int]] = []
    of_text: dict[bytes, list[list[int]]] = {}
    for i, prompt in enumerate(prompts):
        alike = of_text.setdefault(prompt.tobytes(), [])
        for group in alike if len(prompt) else ():
            if _same_images(images[group[0]], images[i]):
                group.append(i)
                break
        else:
            groups.append([i])
            alike.append(groups[-1])
    return groups


def prompt_length(loss_mask: np.ndarray | None) -> int:
    """Return how many tokens come before the first trained one; all of them if none is."""
    if loss_mask is None:  # a question
        return 0
    return int(loss_mask.argmax()) if loss_mask.any() else len(loss_mask)


def _same_images(first: Sequence[object], second: Sequence[object]) -> bool:
    return first is second or (
        len(first) == len(second)
        and all(
            a is b or (np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b)  # pyright: ignore[reportArgumentType]
            for a, b in zip(first, second, strict=True)
        )
    )
