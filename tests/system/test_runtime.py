"""How ranks start, wait for each other, and are refused where they cannot run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers.commands import WORKERS, Command, Server

from ovlt.config import RunConfig
from ovlt.system.runtime import choose_device, start


@pytest.mark.slow
def test_ranks_wait_for_uneven_work_longer_than_a_collective_may_take(
    tmp_path: Path, server: Server
) -> None:
    command = Command(server, str(WORKERS / "wait_worker.py"), [], 2, tmp_path / "wait")
    command.finish()


def test_a_single_rank_leaves_no_description_of_itself_behind() -> None:
    """A second run in the process, or a child of it, would join a group that is no more."""
    before = dict(os.environ)
    for _ in range(2):
        runtime = start(RunConfig(device="cpu"))
        assert os.environ["RANK"] == "0"
        assert runtime.gather_json(7) == [7]
        runtime.close()
        assert os.environ == before


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert choose_device(RunConfig(), 1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"torch sees 2 \(CUDA_VISIBLE_DEVICES=0,2\)"):
        choose_device(RunConfig(), 2)
    assert choose_device(RunConfig(device="cpu"), 2) == torch.device("cpu")


def test_a_driver_too_old_for_torch_is_named_and_no_run_slips_onto_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11080).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("OVLT_DEVICE", "cuda")  # nvidia-smi has listed one
    with pytest.raises(ValueError, match=r"CUDA 13\.0: The NVIDIA driver .* too old"):
        choose_device(RunConfig(), 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="built for CPUs"):
        choose_device(RunConfig(), 0)
    monkeypatch.setenv("OVLT_DEVICE", "cpu")
    assert choose_device(RunConfig(), 0) == torch.device("cpu")
    with pytest.raises(ValueError, match="sees no CUDA device"):
        choose_device(RunConfig(device="cuda"), 0)
