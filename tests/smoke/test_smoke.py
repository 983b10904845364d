"""What a recipe lacks is made once, also when several commands need it at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ovlt.config.load import recipe_from
from ovlt.smoke.make import ensure_world

pytestmark = pytest.mark.slow

MAKE = """
import json, sys
from ovlt.config.load import recipe_from
from ovlt.smoke.make import ensure_world
ensure_world(recipe_from(json.loads(sys.argv[1])))
"""


def test_commands_side_by_side_draw_one_world(tmp_path: Path) -> None:
    rows = ("base", "sft", "grpo", "validation", "held_out", "level", "seed")
    world = {f"{name}_rows": 23 for name in rows} | {"level_validation_rows": 7}
    world |= {"level_held_out_rows": 9, "hard": ["count_c"], "folder": str(tmp_path / "data")}
    asked = json.dumps({"synthetic": world})
    commands = [
        subprocess.Popen([sys.executable, "-c", MAKE, asked], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=240)[0] for process in commands]
    assert [process.returncode for process in commands] == [0, 0, 0]
    assert sum("drawing the synthetic world" in text for text in said) == 1
    assert not list((tmp_path / "data").glob("*.tmp-*"))
    assert json.loads((tmp_path / "data" / "world.json").read_text())["seed_rows"] == 23
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    other = recipe_from({"synthetic": world | {"seed_rows": 29}})
    with pytest.raises(ValueError, match=r"synthetic\.seed_rows was 23, is 29: put them back"):
        ensure_world(other)  # others were trained on what is there
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == files
