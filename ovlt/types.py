"""What passes between the parts of ovlt: prompts, samples, groups (``model/batch.py``: packed).

Shape letters used throughout the project:

    T  tokens of one packed batch          S  samples (segments) of one packed batch
    P  vision patches of one packed batch  I  images of one packed batch
    R  rows that carry loss (R <= T)       V  vocabulary, H  hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One question, ready for the engine and the trainer.

    ``token_ids`` holds the chat-formatted prompt with every image placeholder expanded to the
    number of tokens its image takes; ``images`` are uint8 RGB arrays ``[height, width, 3]`` whose
    sides are multiples of the merged patch (28 pixels for Qwen2.5-VL). Engine and trainer see this
    very array, so no second resize can make them disagree. ``extra`` holds the columns of the row
    that ovlt does not read itself, as JSON values; a reward sees them.
    """

    id: str
    source: str
    question: str
    answer: str
    token_ids: np.ndarray  # int64 [prompt tokens]
    images: tuple[np.ndarray, ...] = ()
    image_paths: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class RankImage:
    """An image of one rank, as all ranks know it: equal to another if the pixels are.

    With several ranks it stands in ``Prompt.images`` from the exchange of the groups until the
    images that a rank uses are there (``rollout/exchange.py``).
    """

    shape: tuple[int, ...]  # height, width, 3
    digest: str  # of the pixels
    rank: int = field(compare=False)  # that has the pixels
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)  # None elsewhere


@dataclass
class Sample:
    """One response to a prompt (GRPO), or one labelled conversation (SFT).

    ``token_ids`` = prompt + response. ``loss_mask[t]`` is True where token ``t`` is *predicted and
    trained on*; it is False for the whole prompt. ``engine_logp[t]`` is the log-prob with which the
    engine sampled token ``t`` (0 if ``loss_mask`` is False; None for SFT).
    """

    prompt: Prompt
    token_ids: np.ndarray  # int64 [tokens]
    loss_mask: np.ndarray  # bool  [tokens]
    engine_logp: np.ndarray | None = None  # float32 [tokens]
    text: str = ""
    finished: bool = True  # ended by the stop token, not by the length limit
    policy_version: int = 0  # optimizer steps behind the weights that sampled it
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    advantage: float = 0.0

    @property
    def num_response_tokens(self) -> int:
        return int(self.loss_mask.sum())


@dataclass
class Group:
    """The n samples drawn for one prompt; advantages are relative to the group."""

    prompt: Prompt
    samples: list[Sample]
