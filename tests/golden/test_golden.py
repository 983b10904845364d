"""No change moves a figure of training unless it says so: see curves.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import curves
from helpers.commands import Server

pytestmark = [pytest.mark.slow, pytest.mark.vllm]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    curves.prepare(folder)
    return folder


@pytest.mark.parametrize(("stage", "ranks"), curves.CASES)
def test_twenty_steps_give_the_golden_figures(
    home: Path, server: Server, stage: str, ranks: int
) -> None:
    assert curves.differences(stage, ranks, curves.measure(home, server, stage, ranks)) == []
