"""The interface of a sampler: generate completions with log-probs, load weights, sleep."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ovlt.config import EvaluateConfig, RolloutConfig
from ovlt.types import Prompt, Sample


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled. ``temperature`` 0 is greedy, and then n is 1."""

    n: int  # completions per prompt
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    ignore_stop: bool = False  # go on to max_tokens


@dataclass
class Completion:
    """One sampled response: ids and the log-prob each was sampled with."""

    token_ids: np.ndarray  # int64 [tokens]
    logp: np.ndarray  # float32 [tokens]
    finished: bool  # ended by the stop token


class Engine(ABC):
    """A sampler with weights of its own. Whoever opens one closes it: ``with open_engine(...)``.

    A fresh engine is asleep if it shares its GPU with a trainer: it works inside ``with
    engine.awake()``, and outside of that its memory belongs to the trainer.

    Attributes:
        busy_s: seconds in which ``stream`` has let the engine work.
        mixes_greedy: greedy prompts may be in one call with others.
    """

    busy_s: float = 0.0
    mixes_greedy: bool = True

    @abstractmethod
    def generate(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int],
        finished: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Return ``n`` completions for each prompt, in order; a seed for each prompt.

        ``sampling`` is that of all prompts, or there is one for each (``mixes_greedy``).
        A prompt is taken from ``prompts`` when there is room for it, and let go with its answer, so
        an iterator that decodes images as it goes holds few of them.
        Sample i of a prompt uses its seed + i, so seeds of different prompts are at least n apart.
        ``finished`` is told the place and completions of each prompt as soon as these are there.
        """

    def stream(
        self, prompts: Iterable[tuple[Prompt, int]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (place, completions) of each (prompt, seed) as it is finished, in any order.

        Prompts are taken from the iterable as the engine has room, so memory holds as many as are
        under way.
        """
        for place, (prompt, seed) in enumerate(prompts):
            since = time.perf_counter()
            [completions] = self.generate([prompt], sampling, [seed])
            self.busy_s += time.perf_counter() - since
            yield place, completions

    @abstractmethod
    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace every weight from a stream of (transformers name, whole tensor)."""

    def weight(self, name: str) -> torch.Tensor:
        """Return what the engine now holds for a tensor of the last ``load``, in its own dtype.

        Raises RuntimeError if it has no such tensor.
        """
        raise RuntimeError(f"this engine does not give {name} back: set engine.verify_every = 0")

    @abstractmethod
    def close(self) -> None:
        """Shut the engine down."""

    def sleep(self) -> None:  # noqa: B027 - an engine may have nothing to give back
        """Give the device's memory to the trainer."""

    def wake(self) -> None:  # noqa: B027
        """Take the memory back."""

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Keep the engine awake inside the ``with`` block."""
        self.wake()
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to be seen
                self.sleep()
            raise
        self.sleep()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error an engine may not close cleanly; the first error is the one to be seen.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()


def sampling_of(config: RolloutConfig | EvaluateConfig) -> Sampling:
    """Return how [grpo.rollout] or [evaluate] samples."""
    return Sampling(
        config.n,
        config.temperature,
        config.max_response_tokens,
        top_p=config.top_p,
        top_k=config.top_k,
    )


def one_for_each(sampling: Sampling | Sequence[Sampling], count: int) -> Sequence[Sampling]:
    """Return how each of ``count`` prompts is sampled."""
    return [sampling] * count if isinstance(sampling, Sampling) else sampling


def request_seeds(run_seed: int, step: int, indices: Sequence[int], spacing: int) -> list[int]:
    """Seeds of the prompts of one step: a function of (run, step, index in the step), not of ranks.

    Prompt i's n samples use seed..seed+n-1, so seeds are ``spacing`` >= n apart. A hash keeps the
    streams of different runs and steps away from each other.
    """
    mixed = np.random.SeedSequence([run_seed, step]).generate_state(1, np.uint64)[0]
    start = int(mixed) % (1 << 62)  # vLLM takes signed 64-bit seeds; this leaves room for indices
    return [start + int(i) * spacing for i in indices]


def sample_of(prompt: Prompt, completion: Completion, text: str = "", version: int = 0) -> Sample:
    """Make a completion a trainable sample: prompt tokens without loss, response tokens with."""
    length = len(prompt.token_ids)
    total = length + len(completion.token_ids)
    logp = np.zeros(total, dtype=np.float32)  # [tokens], 0 for the prompt
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
