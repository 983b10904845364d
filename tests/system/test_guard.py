"""What an engine leaves behind in the trainer's process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ovlt.system.guard import guarded


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("fails", [False, True])
def test_an_engine_changes_neither_generators_nor_threads_nor_determinism(fails: bool) -> None:
    before = torch.get_num_threads()
    state = torch.get_rng_state()
    try:
        with guarded():
            assert not torch.are_deterministic_algorithms_enabled()  # the switch is the trainer's
            torch.manual_seed(1)
            torch.set_num_threads(before + 1)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
