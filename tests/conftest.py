"""What every test shares: the environment (before torch is imported), seeds, and markers."""

from __future__ import annotations

import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import Server

from ovlt.system import env

# `make test` exports the same table before Python starts; this serves a plain `pytest`.
env.apply(env.machine(), shared=True)

SEED = 20_240_607


@pytest.fixture(autouse=True)
def seeded() -> int:
    """Seed every generator that is loaded, so that no test depends on the order of the tests."""
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
    return SEED


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The process of which all commands are forks: it imports torch and vLLM once, in 10 s."""
    server = Server()
    yield server
    server.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of ``device`` "cuda", skip those without a GPU, and start long files first."""
    no_gpu = pytest.mark.skipif(env.machine() != "cuda", reason="no GPU on this machine")
    marks: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        if isinstance(item, pytest.Function) and _parameters(item).get("device") == "cuda":
            item.add_marker("gpu")
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
        marks[item.path].update(mark.name for mark in item.iter_markers())
    if "PYTEST_XDIST_WORKER" in os.environ:  # a long file that starts last would run alone
        items.sort(key=lambda i: ("vllm" not in marks[i.path], "slow" not in marks[i.path]))


def _parameters(item: pytest.Function) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}
