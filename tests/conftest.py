"""What every test shares: the environment (before torch is imported) and the seeds."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import pytest
from helpers.commands import Server

from ovlt.system import env

# `make test` exports the same table before Python starts; this serves a plain `pytest`.
env.apply(env.machine(), shared=True)

SEED = 20_240_607


@pytest.fixture(autouse=True)
def seeded() -> int:
    """Seeds every generator that is loaded, so that no test depends on the order of the tests."""
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
    """Under xdist the files with slow tests come first: a long one at the end would run alone."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
