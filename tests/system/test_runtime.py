"""How ranks start, wait for each other, and are refused where they cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import WORKERS, Command, Server


@pytest.mark.slow
def test_ranks_wait_for_uneven_work_longer_than_a_collective_may_take(
    tmp_path: Path, server: Server
) -> None:
    command = Command(server, str(WORKERS / "wait_worker.py"), [], 2, tmp_path / "wait")
    command.finish()
