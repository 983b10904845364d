"""What every test shares: the environment (before torch is imported) and the seeds."""

from __future__ import annotations

import random
import sys

import pytest

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
