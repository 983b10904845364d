"""No change moves a figure of training unless it says so: see curves.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import curves
from helpers.commands import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    home = tmp_path_factory.mktemp("golden")
    curves.prepare(home)
    opened = Server()
    yield home, opened
    opened.close()


@pytest.mark.parametrize(("stage", "ranks"), curves.CASES)
def test_twenty_steps_give_the_golden_figures(
    server: tuple[Path, Server], stage: str, ranks: int
) -> None:
    assert curves.differences(stage, ranks, curves.measure(*server, stage, ranks)) == []
