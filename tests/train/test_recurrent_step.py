"""A step of a model with recurrent layers on one rank and on two, prompts shared and copied."""

from __future__ import annotations

from pathlib import Path

from helpers.commands import WORKERS, Command, Server
from helpers.tiny import tiny_folder
from safetensors.torch import load_file


def test_gradients_do_not_depend_on_ranks_or_on_shared_prompts(
    tmp_path: Path, server: Server
) -> None:
    tiny_folder(tmp_path / "model", family="qwen3_5", layers=3)
    values = {}
    for ranks in (1, 2):
        argv = [str(tmp_path / "model"), str(tmp_path / f"{ranks}.safetensors")]
        log = tmp_path / f"log-{ranks}"
        Command(server, str(WORKERS / "recurrent_worker.py"), argv, ranks, log).finish()
        values[ranks] = load_file(tmp_path / f"{ranks}.safetensors")
    expected = {n: v for n, v in values[1].items() if n.startswith("copies/")}
    for case in ("shared", "copies"):
        for ranks in (1, 2):
            for name, want in expected.items():
                got = values[ranks][name.replace("copies", case, 1)]
                # The decays' own gradients are small differences of large sums.
                allowed = 1e-3 if name.endswith(("A_log", "dt_bias")) else 1e-4
                largest = want.abs().max()
                assert (got - want).abs().max() <= allowed * largest, (case, ranks, name)
    assert all(value.any() for name, value in expected.items() if "linear_attn" in name)
