"""Weights from the sharded trainer into the engine, with proof that they arrived.

Half of the known failures of such trainers are stale weights or caches that crash nothing and only
bend the curve. So every transfer is proven: the names sent are the names expected, and a fixed
image prompt scores the same in the engine and in the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel
from ovlt.model.weights import expected_names, full_weights
from ovlt.rollout.engine import Engine, Sampling, sample_of
from ovlt.train.pack import collate
from ovlt.types import Prompt

PROBE_TOKENS = 8  # enough to see stale weights, few enough to cost nothing
PROBE_SEED = 20241  # any constant: the probe samples the same tokens from the same weights


class WeightSync:
    """Streams weights into one engine and proves that they arrived. One object per trained model.

    ``tolerance`` is the largest |log-prob difference| on the probe that rounding explains.
    """

    def __init__(
        self, engine: Engine, model: PackedModel, model_folder: ModelFolder, *, tolerance: float
    ):
        self.engine, self.model, self.model_folder = engine, model, model_folder
        self.tolerance = tolerance
        # At the temperature of the model's head, with its bans, as in a rollout. Never stopped, so
        # that the probe always has the same length.
        temperature = model.head_options.temperature
        self._sampling = Sampling(1, temperature, PROBE_TOKENS, ignore_stop=True)
        self.probe = probe_prompt(model_folder)
        self._expected = expected_names(model)

    def __call__(self) -> float:
        """Transfer the weights and return the largest |log-prob difference| on the probe.

        The engine is awake. Collective. Raises RuntimeError if a name is missing or unknown, or if
        the probe disagrees.
        """
        # 1. Stream whole tensors, one at a time: no rank ever holds two copies of the model.
        sent: set[str] = set()
        self.engine.load(self._recorded(sent))
        # 2. An engine does not notice a missing tensor: compare with the configuration's names.
        if sent != self._expected:
            lost, unknown = sorted(self._expected - sent), sorted(sent - self._expected)
            raise RuntimeError(
                f"weight sync sent another set of tensors than the model has: missing {lost[:3]}, "
                f"unknown {unknown[:3]}; the engine would go on with old weights for these"
            )
        # 3. The probe sees what names cannot: caches, fused copies, the tower, the temperature.
        difference = self._probe_difference()
        if not difference <= self.tolerance:  # also catches NaN
            raise RuntimeError(
                f"after the weight sync the engine scores the image probe {difference:.3g} away "
                f"from the trainer (allowed {self.tolerance:.3g}): the engine samples from other "
                "weights or stale image features. Check the vLLM version, or raise "
                "engine.max_mismatch if the engine's dtype explains it"
            )
        return difference

    def _recorded(self, sent: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in full_weights(self.model, tied_head=True):
            sent.add(name)
            yield name, tensor

    def _probe_difference(self) -> float:
        # The engine answers an image question; the trainer scores the very tokens it sampled, on
        # the path that training takes: packed, sharded, with the head's bans and temperature.
        completion = self.engine.generate([self.probe], self._sampling, [PROBE_SEED])[0][0]
        sample = sample_of(self.probe, completion)
        device = next(self.model.parameters()).device
        batch = collate(
            [sample], [1.0], config=self.model_folder.config, patchify=self.model_folder.patchify
        ).to(device)
        with torch.no_grad():
            head = self.model(batch)
        engine_logp = torch.from_numpy(completion.logp).to(device)  # [PROBE_TOKENS]
        return float((head.logp - engine_logp).abs().max())


def probe_tokens(folder: ModelFolder) -> int:
    """Return the tokens of the probe with its response: an engine must have room for them."""
    return len(probe_prompt(folder).token_ids) + PROBE_TOKENS


def probe_prompt(folder: ModelFolder) -> Prompt:
    """A fixed image question: smooth colours and noise, so that stale features are far off."""
    merged = qwen.merged_patch(folder.config)  # pixels
    rng = np.random.default_rng(11)
    side = merged * 3  # 3 x 3 image tokens: the tower's windows and its full attention both run
    ramp = np.linspace(0, 255, side)[:, None, None] * np.array([1.0, 0.5, 0.2])
    noise = rng.integers(0, 64, (side, side, 3))
    image = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    grid = qwen.image_grid(folder.config, side, side)
    question = "<image>Describe the image."
    ids = folder.chat.prompt_ids(question, [grid])
    return Prompt("probe", "probe", question, "", ids, (image,))
