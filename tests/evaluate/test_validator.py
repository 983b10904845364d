"""When a stage opens the engine that it validates with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_folder

import ovlt.sft
from ovlt.config.load import recipe_from


@pytest.mark.parametrize("measures", [True, False])
def test_sft_opens_its_engine_before_the_model_if_it_measures_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measures: bool
) -> None:
    """vLLM takes a share of what is free: beside a trainer it would fail at the first use."""
    events: list[str] = []

    @contextlib.contextmanager
    def engine(*_: Any, **options: Any) -> Iterator[str]:
        events.append("engine opened")
        assert options["max_images"] == 3
        yield "engine"
        events.append("engine closed")

    def load() -> Any:
        events.append("model loaded")
        return "model"

    rows = SimpleNamespace(any=measures, max_images=3)
    stand_ins = {
        "read_evaluation_rows": lambda *_, **__: rows,
        "check_engine": lambda *_, **__: None,
        "RewardPool": lambda *_, **__: contextlib.nullcontext("pool"),
        "open_engine": engine,
        "weight_sync": lambda sampler, model, *_, **__: (sampler, model),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(ovlt.sft, name, stand_in)
    runtime = SimpleNamespace(device=torch.device("cpu"))
    reader: Any = SimpleNamespace(runtime=runtime, folder=tiny_folder(tmp_path / "m"))
    with contextlib.ExitStack() as opened:
        validator = ovlt.sft.open_validator(recipe_from({}), reader, load, opened)
        assert events == (["engine opened"] if measures else [])
        if measures:
            assert validator.open_engine() == validator.open_engine()
            assert events == ["engine opened", "model loaded"]
    assert ("engine closed" in events) == measures
