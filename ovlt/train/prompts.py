"""Which samples share their prompt: by what they hold, not by what they are said to answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROWS_APART = 16  # every so many rows of an image are looked at before it is compared


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
    alike: dict[tuple[object, ...], list[list[int]]] = {}  # whose prompts may be the same
    looks: dict[int, object] = {}  # of each array, by its id: samples of a group mostly share them
    for i, prompt in enumerate(prompts):
        key = (prompt.tobytes(), *(_look(image, looks) for image in images[i]))
        candidates = alike.setdefault(key, [])
        for group in candidates if len(prompt) else ():
            if _same_images(images[group[0]], images[i]):
                group.append(i)
                break
        else:
            groups.append([i])
            candidates.append(groups[-1])
    return groups


def prompt_length(loss_mask: np.ndarray | None) -> int:
    """Return how many tokens come before the first trained one; all of them if none is."""
    if loss_mask is None:  # a question
        return 0
    return int(loss_mask.argmax()) if loss_mask.any() else len(loss_mask)


def _look(image: object, looks: dict[int, object]) -> object:
    """Return what tells most images apart: of pixels the shape and some rows, read once an array.

    Comparing all pixels in pairs would take minutes if all questions have the same words.
    """
    if not isinstance(image, np.ndarray):
        return image
    if id(image) not in looks:
        looks[id(image)] = (image.shape, hash(image[::ROWS_APART].tobytes()))
    return looks[id(image)]


def _same_images(first: Sequence[object], second: Sequence[object]) -> bool:
    return first is second or all(
        a is b or (np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b)  # pyright: ignore[reportArgumentType]
        for a, b in zip(first, second, strict=True)
    )
