"""What "auto" means for memory: the cheapest that fits, alike on all ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.planned import V2, run_of

from ovlt.config import ModelConfig
from ovlt.plan.memory import training
from ovlt.system.runtime import Runtime
from ovlt.train import settle
from ovlt.train.footprint import CHOICES, Training, cheapest_that_fits, fullest
from ovlt.train.settle import settle_memory

RUN = run_of(V2, "h100x8")


def choice(free_gib: float, **fixed: Any) -> Training:
    wanted = {"checkpointing": "auto", "reduce": "auto"} | fixed
    return cheapest_that_fits(RUN.config, training(RUN, "grpo"), free_gib * 2**30, **wanted)


def test_less_room_gives_what_takes_less_memory_and_more_time() -> None:
    found = [choice(gib) for gib in range(200, 10, -1)]
    places = [CHOICES.index((c.checkpointing, c.reduce_each)) for c in found]
    assert places == sorted(places)  # the list goes from the fastest to the slowest
    assert places[0] == 0
    for gib, chosen in zip(range(200, 10, -1), found, strict=True):
        fits = fullest(RUN.config, chosen) <= gib * 2**30
        least = min(fullest(RUN.config, c) for c in found)
        assert fits or fullest(RUN.config, chosen) == least


def test_what_is_given_stays() -> None:
    for gib in (200, 60, 10):
        assert choice(gib, checkpointing="none").checkpointing == "none"
        assert not choice(gib, reduce="last").reduce_each
        assert choice(gib, reduce="each").reduce_each


@pytest.mark.parametrize(("free", "expected"), [(10**12, ("none", "last")), (0, ("full", "each"))])
def test_training_settles_by_the_free_memory_of_its_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int,
    expected: tuple[str, str],
) -> None:  # fmt: skip
    """A pretended GPU: only how much of it is free is asked."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**12))
    monkeypatch.setattr(settle.liger, "should_apply", lambda *_: True)
    monkeypatch.setattr(Runtime, "gather_json", lambda _, value: [value, value])
    runtime = Runtime(0, 2, torch.device("cuda"), mesh=None)  # type: ignore[arg-type]
    config = ModelConfig(activation_checkpointing="auto")
    settled = settle_memory(
        config, RUN.config, runtime,
        dtype=torch.bfloat16, token_budget=16384, reference=True,
    )  # fmt: skip
    assert (settled.activation_checkpointing, settled.reduce_gradients) == expected
    assert "are free" in capsys.readouterr().out


def test_a_cpu_recomputes_nothing_and_reduces_once() -> None:
    runtime = Runtime(0, 1, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]
    settled = settle_memory(
        ModelConfig(activation_checkpointing="auto"), RUN.config, runtime,
        dtype=torch.float32, token_budget=640, reference=False,
    )  # fmt: skip
    assert (settled.activation_checkpointing, settled.reduce_gradients) == ("none", "last")


@pytest.mark.parametrize(("value", "means"), [(True, "full"), (False, "none"), ("mlp", "mlp")])
def test_the_switch_of_earlier_recipes_is_read(value: object, means: str) -> None:
    assert (
        ModelConfig.model_validate({"activation_checkpointing": value}).activation_checkpointing
        == means
    )
