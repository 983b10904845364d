"""Whose a run folder is: the same run may go on, another one or an older version is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovlt import __version__
from ovlt.run.folder import claim_run_folder
from ovlt.run.version import FORMAT

RECIPE: dict[str, Any] = {"run": {"seed": 0}, "grpo": {"steps": 4}}


def claim(folder: Path, recipe: dict[str, Any], resume: str) -> None:
    """Claim a folder and begin."""
    claim_run_folder(folder, recipe, resume).record()


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "recipe.json").read_text())


def test_a_record_says_which_version_made_it(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, "never")
    assert record(tmp_path) == RECIPE | {"ovlt": __version__, "format": FORMAT}
    claim(tmp_path, RECIPE, "auto")  # and is no change of the recipe


@pytest.mark.parametrize(
    ("marks", "version"),
    [({}, "0.1"), ({"ovlt": "0.1.9", "format": 1}, "0.1.9"), ({"ovlt": "9.0", "format": 7}, "9.0")],
)
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_folder_of_another_version_is_refused_by_its_name(
    tmp_path: Path, marks: dict[str, Any], version: str, resume: str
) -> None:
    older = {"run": {"seed": 0}, "grpo": {"steps": 4, "reward": {"function": "answer"}}}
    text = json.dumps(older | marks)
    (tmp_path / "recipe.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=rf"was made by ovlt {version}, .*its own version") as told:
        claim(tmp_path, RECIPE, resume)
    assert str(tmp_path) in str(told.value)
    assert (tmp_path / "recipe.json").read_text() == text


def test_another_recipe_is_refused_and_a_longer_run_is_not(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, "never")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"another recipe: run\.seed was 0, is 1"):
        claim(tmp_path, RECIPE | {"run": {"seed": 1}}, "auto")
    with pytest.warns(UserWarning, match=r"another length: grpo\.steps was 4, is 9"):
        claim(tmp_path, RECIPE | {"grpo": {"steps": 9}}, "auto")
    with pytest.raises(ValueError, match="continue it with `--resume auto`"):
        claim(tmp_path, RECIPE | {"grpo": {"steps": 9}}, "never")
