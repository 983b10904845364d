"""When the proof of a weight sync repeats its probe, stops the run, and lets it pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_folder

from ovlt.config import EngineConfig, ModelConfig, RunConfig
from ovlt.model.parallel import load_sharded
from ovlt.rollout import sync as sync_module
from ovlt.rollout.engine import Completion, Sampling
from ovlt.rollout.open import BFLOAT16, FLOAT32, FLOAT32_ON_CUDA, open_engine, probe_tolerance
from ovlt.rollout.sync import PROBE_TOKENS, ProbeDifference, WeightSync
from ovlt.system.runtime import start
from ovlt.types import Prompt


class Noisy:
    """An engine whose log-probs carry an error: one row of ``errors`` for each call."""

    def __init__(self, engine: Any):
        self.engine, self.errors, self.asked = engine, list[np.ndarray](), list[Prompt]()

    def load(self, weights: Any) -> None:
        self.engine.load(weights)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        assert sampling.temperature == 0
        out = self.engine.generate(prompts, sampling, seeds)
        self.asked += prompts
        if self.errors:
            out[0][0].logp += self.errors.pop(0)
        return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Noisy, WeightSync]]:
    runtime = start(RunConfig(device="cpu"))
    folder = tiny_folder(tmp_path_factory.mktemp("m") / "m")
    config = EngineConfig(backend="transformers")
    engine = Noisy(open_engine(folder, config, runtime, dtype=torch.float32, max_tokens=64))
    model = load_sharded(
        folder, runtime.mesh, runtime.device, ModelConfig(), dtype=torch.float32, temperature=0.7
    )
    yield engine, WeightSync(engine, model, folder, tolerance=BFLOAT16)  # type: ignore[arg-type]
    runtime.close()


def errors(**at: float) -> np.ndarray:
    """The same error on every token (``all``), or on one (``one``)."""
    error = np.full(PROBE_TOKENS, at.get("all", 0.0), np.float32)
    error[3] += at.get("one", 0.0)
    return error


BAD = [errors(all=0.2), errors(one=1.7), errors(one=float("nan"))]


def test_a_healthy_probe_is_asked_once_and_both_figures_are_logged(
    parts: tuple[Noisy, WeightSync],
) -> None:
    engine, sync = parts
    engine.asked.clear()
    engine.errors = [errors(all=0.05, one=0.9)]  # above the mean of others, below every limit
    figures = sync().metrics()
    assert len(engine.asked) == 1
    assert figures["mismatch/probe"] == pytest.approx(0.95, abs=1e-4)
    assert figures["mismatch/probe_mean"] == pytest.approx(0.05 + 0.9 / PROBE_TOKENS, abs=1e-4)
    assert figures["mismatch/probe_repeated"] == 0


@pytest.mark.parametrize("first", BAD)
def test_a_breach_is_repeated_with_another_image_and_question(
    parts: tuple[Noisy, WeightSync], first: np.ndarray
) -> None:
    engine, sync = parts
    engine.asked.clear()
    engine.errors = [first]
    assert sync().metrics()["mismatch/probe_repeated"] == 1
    one, two = engine.asked
    assert one.question != two.question
    assert not np.array_equal(one.images[0], two.images[0])


@pytest.mark.parametrize("second", BAD)
def test_two_breaches_stop_the_run_with_both_figures(
    parts: tuple[Noisy, WeightSync], second: np.ndarray
) -> None:
    engine, sync = parts
    engine.errors = [BAD[0], second]
    with pytest.raises(RuntimeError, match=r"rank 0 .* by 0\.2 on average .* another probe by"):
        sync()


def test_all_ranks_repeat_with_the_one_that_has_to_and_stop_with_the_one_that_fails_twice(
    parts: tuple[Noisy, WeightSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's forward is collective: a rank that did not repeat would let others wait."""
    engine, sync = parts
    engine.asked.clear()
    other: list[Any] = [False, ["0.2", "0.01", True], False, ["0.2", "0.3", False]]
    monkeypatch.setattr(sync_module, "gather_json", lambda value: [value, other.pop(0)])
    assert sync().repeated
    assert len(engine.asked) == 2
    with pytest.raises(RuntimeError, match="engine of rank 1"):
        sync()
    # One rank fails the first probe and another the second: rounding, at two places.
    other[:] = [True, ["0", "0.3", False]]
    engine.errors = [BAD[0]]
    assert sync().repeated


def test_the_limits_follow_dtype_and_device_and_the_recipe() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert probe_tolerance(EngineConfig(), torch.float32, cpu) == FLOAT32
    # vLLM's attention on CUDA multiplies float32 in TF32
    assert probe_tolerance(EngineConfig(), torch.float32, cuda) == FLOAT32_ON_CUDA
    assert FLOAT32_ON_CUDA.largest == 2e-2
    assert probe_tolerance(EngineConfig(), torch.bfloat16, cuda) == BFLOAT16
    own = EngineConfig(max_mismatch=0.5, max_mean_mismatch=0.05)
    assert probe_tolerance(own, torch.bfloat16, cpu) == ProbeDifference(mean=0.05, largest=0.5)


def test_rounding_alone_stops_less_than_one_sync_in_a_million_on_eight_ranks() -> None:
    """Errors of 0.05 nats a token with tails that fall as the third power (docs/metrics.md)."""
    rng = np.random.default_rng(5)
    breaches = 0
    for _ in range(10):
        drawn = rng.standard_t(3, (200_000, PROBE_TOKENS)) * (0.05 / np.sqrt(3))
        apart = np.abs(drawn)
        fine = (apart.mean(1) <= BFLOAT16.mean) & (apart.max(1) <= BFLOAT16.largest)
        breaches += int((~fine).sum())
    assert 8 * (breaches / 2_000_000) ** 2 <= 1e-6
