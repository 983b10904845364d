"""Nothing in a step waits for the device, but the one read of an update's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import WORKERS, Command, Server
from helpers.tiny import tiny_folder
from helpers.waits import Waits


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_an_update_reads_the_device_once_and_a_pass_for_log_probs_never(
    tmp_path: Path, server: Server, family: str
) -> None:
    tiny_folder(tmp_path / "model", family=family)
    argv = [str(tmp_path / "model"), str(tmp_path / "out.json")]
    Command(server, str(WORKERS / "waits_worker.py"), argv, 1, tmp_path / "log").finish()
    seen = json.loads((tmp_path / "out.json").read_text())
    assert set(seen) == {"sft", "grpo", "gspo"}
    for name, of in seen.items():
        assert of["forward"] == [], name
        assert of["update"] == [["tolist", "/ovlt/train/step.py:read"]], name


def test_the_counter_sees_what_waits_on_a_gpu() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    for ask in (
        lambda: float(x[1]),
        lambda: bool((x > 0).any()),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.masked_select(x > 0),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: torch.tensor([1, 2]),
        lambda: torch.equal(x, x),
        lambda: x.repeat_interleave(x.long()),
        lambda: x.index_put_((x > 0,), torch.ones(2)),
    ):
        with Waits() as waits:
            ask()
        assert waits.seen
    with Waits() as waits:
        _ = torch.where(x > 0, x, 0.0).sum() + x.index_select(0, torch.arange(2))[0]
    assert not waits.seen
