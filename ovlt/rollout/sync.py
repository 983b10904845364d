"""Weights from the sharded trainer into the engine, with proof that they arrived.

Half of the known failures of such trainers are stale weights or caches that crash nothing and only
bend the curve. So every transfer is proven: the names sent are the names expected, and a fixed
image prompt, the probe, scores the same in the engine and in the trainer. A rollout asks it among
its own prompts. docs/metrics.md says what the probe can see, and how seldom it stops a healthy run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ovlt.model import sizes
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel
from ovlt.model.weights import expected_names, full_weights
from ovlt.rollout.engine import Completion, Engine, Sampling, sample_of
from ovlt.system.collectives import gather_json
from ovlt.train.pack import collate
from ovlt.types import Prompt

PROBE_TOKENS = 16  # enough to see stale weights and to average rounding, few enough to cost nothing
# (seed of the image, question) of the first probe, and of its repetition.
PROBES = ((11, "Describe the image."), (12, "Which colours are there?"))
# Greedy tokens: their log-probs are large, and rounding moves those least. An improbable token's
# differs by tenths in bfloat16. Never stopped, so that a probe always has the same length.
PROBE_SAMPLING = Sampling(1, 0.0, PROBE_TOKENS, ignore_stop=True)


@dataclass(frozen=True)
class ProbeDifference:
    """|log-prob of the engine - of the trainer| over the tokens of a probe, or limits of it."""

    mean: float
    largest: float

    def within(self, limits: ProbeDifference) -> bool:
        """Return whether neither number exceeds its limit; NaN does."""
        return self.mean <= limits.mean and self.largest <= limits.largest

    def __str__(self) -> str:
        return f"{self.mean:.3g} on average and {self.largest:.3g} at most"


@dataclass(frozen=True)
class Proof:
    """What a transfer has shown: the difference on the first probe, and whether it was repeated."""

    difference: ProbeDifference
    repeated: bool

    def metrics(self) -> dict[str, float]:
        """Return the figures; docs/metrics.md explains each name."""
        return {
            "mismatch/probe": self.difference.largest,
            "mismatch/probe_mean": self.difference.mean,
            "mismatch/probe_repeated": float(self.repeated),
        }


class WeightSync:
    """Streams weights into one engine and proves that they arrived. One object per trained model.

    ``tolerance`` is the difference on the probe that rounding explains. The first sync and then one
    in ``verify_every`` also reads the tensors back (0: none does). ``dtype`` is the engine's: what
    it would round to is rounded before it is sent (None: float32 is sent).
    """

    def __init__(
        self,
        engine: Engine,
        model: PackedModel,
        model_folder: ModelFolder,
        *,
        tolerance: ProbeDifference,
        verify_every: int = 0,
        dtype: torch.dtype | None = None,
    ):
        self.engine, self.model, self.model_folder = engine, model, model_folder
        self.tolerance, self.verify_every, self.dtype = tolerance, verify_every, dtype
        self._syncs = 0
        self.probes = [probe_prompt(model_folder, *probe) for probe in PROBES]
        self._expected = expected_names(model)

    def __call__(self) -> Proof:
        """Transfer the weights and prove that they arrived: ``send``, ask, ``prove``. Collective.

        The engine is awake. Raises RuntimeError as these do.
        """
        self.send()
        return self.prove(self.ask(self.probes[0]))

    def send(self) -> None:
        """Transfer the weights. Nothing is learnt from what the engine samples before ``prove``.

        The engine is awake. Collective. Raises RuntimeError if a name is missing or unknown, or if
        a rank's engine disagrees with the trainer in a tensor that is read back.
        """
        # 1. Stream whole tensors, a few at a time: no rank ever holds two copies of the model.
        sent: set[str] = set()
        self.engine.load(self._recorded(sent))
        # 2. An engine does not notice a missing tensor: compare with the configuration's names.
        if sent != self._expected:
            lost, unknown = sorted(self._expected - sent), sorted(sent - self._expected)
            raise RuntimeError(
                f"weight sync sent another set of tensors than the model has: missing {lost[:3]}, "
                f"unknown {unknown[:3]}; the engine would go on with old weights for these"
            )
        # 3. Now and then, a proof that no rounding hides anything from.
        verify = self.verify_every > 0 and self._syncs % self.verify_every == 0
        self._syncs += 1
        if verify:
            self.verify()

    def prove(self, answer: Completion) -> Proof:
        """Return what ``answer``, the engine's to the first probe since ``send``, proves.

        The engine is awake. Collective. Raises RuntimeError if a rank's engine disagrees with the
        trainer on both probes.
        """
        # The probe sees what names cannot: caches, fused copies, the tower. All ranks repeat it if
        # one has to, since the trainer's forward is collective; a rank that fails twice stops.
        first = self.difference(self.probes[0], answer)
        passed = gather_json(first.within(self.tolerance))
        if all(passed):
            return Proof(first, repeated=False)
        second = self.difference(self.probes[1], self.ask(self.probes[1]))
        figures = gather_json([str(first), str(second), second.within(self.tolerance)])
        for rank, (one, two, good) in enumerate(figures):
            if not passed[rank] and not good:
                raise RuntimeError(
                    f"after the weight sync the engine of rank {rank} scores the image probe apart "
                    f"from the trainer, by {one} (nats); another probe by {two}; allowed are "
                    f"{self.tolerance}. The engine samples from other weights or stale image "
                    "features. Check the vLLM version, or raise engine.max_mismatch and "
                    "engine.max_mean_mismatch if the engine's dtype explains it"
                )
        return Proof(first, repeated=True)

    def verify(self) -> None:
        """Raise RuntimeError unless the engine holds, bit for bit, what the trainer does.

        In the engine's dtype; joined tensors are taken apart. The engine is awake and loaded.
        Collective.
        """
        wrong: list[str] = []
        for name, tensor in full_weights(self.model, tied_head=True):
            held = self.engine.weight(name)
            if not torch.equal(held, tensor.to(held.dtype)):  # nor is NaN equal to NaN
                wrong.append(name)
        for rank, names in enumerate(gather_json(wrong)):
            if names:
                raise RuntimeError(
                    f"after the weight sync the engine of rank {rank} holds other values than the "
                    f"trainer in {len(names)} tensors, e.g. {names[:3]}, and would sample from "
                    "other weights. Check the vLLM version"
                )

    def _recorded(self, sent: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in full_weights(self.model, tied_head=True, dtype=self.dtype):
            sent.add(name)
            yield name, tensor

    def ask(self, probe: Prompt) -> Completion:
        """Return the engine's answer to a probe alone."""
        return self.engine.generate([probe], PROBE_SAMPLING, [0])[0][0]

    def difference(self, probe: Prompt, answer: Completion) -> ProbeDifference:
        """Return how far engine and trainer are apart on the answer to a probe. Collective."""
        # The trainer scores the very tokens that the engine chose, on the path that training takes:
        # packed, sharded, with the head's bans. An engine's log-probs of greedy tokens are those of
        # temperature 1.
        sample = sample_of(probe, answer)
        device = next(self.model.parameters()).device
        batch = collate(
            [sample], [1.0], config=self.model_folder.config, patchify=self.model_folder.patchify
        ).to(device)
        options = self.model.head_options
        self.model.head_options = options._replace(temperature=1.0)
        try:
            with torch.no_grad():
                head = self.model(batch)
        finally:
            self.model.head_options = options
        engine_logp = torch.from_numpy(answer.logp).to(device)  # [PROBE_TOKENS]
        apart = (head.logp - engine_logp).abs()
        return ProbeDifference(float(apart.mean()), float(apart.max()))


def probe_tokens(folder: ModelFolder) -> int:
    """Return the most tokens of a probe and its response: an engine must have room for them."""
    return max(len(probe_prompt(folder, *p).token_ids) for p in PROBES) + PROBE_TOKENS


def probe_pixels(folder: ModelFolder) -> int:
    """Return the area of the probe's image: an engine must not reduce it."""
    return probe_side(folder) ** 2


def probe_side(folder: ModelFolder) -> int:
    """Return the side of the probe's image in pixels.

    3 x 3 tokens, so that a tower's windows run, or as many as the model's own image processor asks
    for: the engine would enlarge a smaller image.
    """
    merged = sizes.merged_patch(folder.config)
    least = math.isqrt(max(0, folder.pixel_range[0] - 1)) + 1  # the square root, rounded up
    return max(3, -(-least // merged)) * merged


def probe_prompt(folder: ModelFolder, seed: int, question: str) -> Prompt:
    """A fixed image question: smooth colours and noise, so that stale features are far off."""
    rng = np.random.default_rng(seed)
    side = probe_side(folder)
    ramp = np.linspace(0, 255, side)[:, None, None] * rng.permutation([1.0, 0.5, 0.2])
    noise = rng.integers(0, 64, (side, side, 3))
    image = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    grid = sizes.image_grid(folder.config, side, side)
    question = f"<image>{question}"
    ids = folder.chat.prompt_ids(question, [grid])
    return Prompt("probe", "probe", question, "", ids, (image,))
