"""What the loops need of a sampler: completions with log-probs, weights, sleep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ovlt.types import Prompt, Sample


@dataclass
class Completion:
    """One sampled response: ids and the log-prob each was sampled with."""

    token_ids: np.ndarray  # int64 [tokens]
    logp: np.ndarray  # float32 [tokens]
    finished: bool  # ended by the stop token


class Engine(Protocol):
    """What the loops need of a sampler."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int,
        seeds: Sequence[int],
        temperature: float,
        max_tokens: int,
        ignore_stop: bool = False,
    ) -> list[list[Completion]]: ...

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def request_seeds(run_seed: int, step: int, indices: Sequence[int], spacing: int) -> list[int]:
    """Seeds of the prompts of one step: a function of (run, step, index in the step), not of ranks.

    Prompt i's n samples use seed..seed+n-1, so seeds are ``spacing`` >= n apart. A multiplier
    keeps the streams of different runs and steps away from each other.
    """
    mixed = np.random.SeedSequence([run_seed, step]).generate_state(1, np.uint64)[0]
    start = int(mixed) % (1 << 62)
    return [start + int(i) * spacing for i in indices]


def sample_of(prompt: Prompt, completion: Completion, text: str = "", version: int = 0) -> Sample:
    """A completion as a trainable sample: prompt tokens without loss, response tokens with."""
    length = len(prompt.token_ids)
    total = length + len(completion.token_ids)
    logp = np.zeros(total, dtype=np.float32)
    logp[length:] = completion.logp
    return Sample(
        prompt=prompt,
        token_ids=np.concatenate([prompt.token_ids, completion.token_ids]),
        loss_mask=np.arange(total) >= length,
        engine_logp=logp,
        text=text,
        finished=completion.finished,
        policy_version=version,
    )
