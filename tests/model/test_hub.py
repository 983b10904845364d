"""Model folders by a name on the Hub, from a server on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import environment
from helpers.model_hub import COMMIT, serving
from helpers.tiny import tiny_folder

pytestmark = pytest.mark.slow

OPEN = """
import sys
from ovlt.model.load import open_folder
for name in sys.argv[1:]:
    try:
        print("opened", open_folder(name).path)
    except ValueError as error:
        print("refused", error)
"""


def opened(tmp_path: Path, *names: str, **variables: str) -> list[str]:
    """What a process says that opens folders of these names."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *names],
        env=environment() | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("opened", "refused"))]


def test_a_name_on_the_hub_is_downloaded_once_without_pickles_and_a_plain_name_asks_nothing(
    tmp_path: Path,
) -> None:
    folder = tiny_folder(tmp_path / "model").path
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    with serving({"some/model": folder}) as (address, asked):
        names = [
            "hf://some/model", f"hf://some/model@{COMMIT}", "hf://some/other",
            "hf://some/model@wrong", "hf://some", "hf://some/model:train", "plain/model",
        ]  # fmt: skip
        said = opened(tmp_path, *names, HF_ENDPOINT=address)
        assert [line.split()[0] for line in said] == ["opened"] * 2 + ["refused"] * 5
        assert all("hf://some" in line for line in said[2:6])
        assert "it is 'hf://plain/model'" in said[6]
        assert any("some/other" in line for line in asked)
        assert not any("plain/model" in line for line in asked)  # without hf:// nothing is asked
        copy = Path(said[0].split()[1])
        assert (copy / "model.safetensors").is_file()
        assert not (copy / "pytorch_model.bin").exists()
        assert not any("modeling.py" in line or ".bin" in line for line in asked)
    # The server is gone: what is in the cache is found, offline or not; what is not, is refused.
    offline = opened(tmp_path, "hf://some/model", "hf://some/new", HF_HUB_OFFLINE="1")
    assert offline[0] == f"opened {copy}"
    assert offline[1].startswith("refused hf://some/new")
    assert "HF_HUB_OFFLINE" in offline[1]
