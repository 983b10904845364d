"""Recipes and command lines with mistakes of every kind end in a sentence, never in a traceback."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from ovlt.__main__ import main
from ovlt.config import Recipe
from ovlt.config.fields import expanded
from ovlt.config.load import leaves, load_recipe
from ovlt.cycle.stages import cycle_stages

KEYS: list[tuple[str, FieldInfo]] = list(leaves(Recipe))
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**70, 1e308, float("inf"), float("nan"), "", "x", "0", "1e-3", "{seed}",
    "{folder}/{nothing}", "~", "~nobody/x", "$NO_SUCH/x", "${HOME}/x", "a\0b", "\ud800", [], [1],
    ["x", {}], [[]], {}, {"x": 1}, {"n": {"n": {}}}, [{"grpo": [{}, {}]}], [{"sft": {"model": 3}}],
]  # fmt: skip
BROKEN = [
    b"", b"{", b"[", b"[run", b"run = 1", b"[run]\nfolder = ", b"\xff\xfe\x00", b"[run]\n" * 2,
    b"[grpo]\nsteps = 1\nsteps = 2", b"x" * 10_000, b"[" * 5_000, b'"' * 99, b"x = " + b"[" * 5_000,
    b"[run]\r\nseed = 1\r\n", b"\xef\xbb\xbf[run]\nseed = 1\n", b"null", b"3", b"[1, 2]",
    b'{"run": []}', b'{"run": {"seed": {}}}',
]  # fmt: skip


def only_sentences(path: Path, *overrides: str) -> str:
    """Load a recipe; return the sentence that it is refused with, or ""."""
    try:
        recipe = load_recipe(path, overrides)
        recipe.expand("{folder}")
        if recipe.cycle.iterations:
            cycle_stages(recipe)
    except ValueError as error:
        return str(error) or "an empty sentence"
    return ""


def test_any_value_in_any_key(tmp_path: Path) -> None:
    rng, refused = random.Random(11), 0
    for number in range(400):
        tree: dict[str, Any] = {}
        for key, _ in rng.sample(KEYS, rng.randint(1, 3)):
            node = tree
            *tables, last = key.split(".")
            for table in tables[: rng.randint(0, 9) or None]:
                node = node.setdefault(table, {})
                if not isinstance(node, dict):
                    break
            else:
                node[rng.choice([last, last, last, last + "s"])] = rng.choice(VALUES)
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(tree))
        said = only_sentences(path)
        refused += bool(said)
        assert not said or str(path) in said or "stage" in said or "cycle" in said, said
    assert 100 < refused < 400


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_files_that_are_no_recipe(tmp_path: Path, suffix: str) -> None:
    for number, text in enumerate(BROKEN):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(text)
        said = only_sentences(path)
        assert not said or str(path) in said
    assert "no recipe at" in only_sentences(tmp_path / "none.toml")
    assert only_sentences(tmp_path)


def test_any_words_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the recipe: what comes after it is refused by the stages themselves."""
    monkeypatch.setattr("ovlt.__main__._start_ranks", lambda *_: None)
    rng = random.Random(12)
    (tmp_path / "good.toml").write_text("[run]\nseed = 1\n")
    pieces = [
        "=", "--", "-", "--=", "--x", "--run.seed", "--run.seed=", "--run=3", "--run.seed.x=1",
        "--grpo.optim.betas=[1]", "--cycle.iterations=[{}]", "--smoke", "--seeds=x", "--ranks=0",
        "--until=x", "--hardware=abacus", "--sizes=/nowhere", "--out=/nowhere/x", "--list",
        str(tmp_path), str(tmp_path / "good.toml"), str(tmp_path / "gone"), "\0", "ä", "",
    ]  # fmt: skip
    for _ in range(150):
        command = rng.choice(["evaluate", "cycle", "plan", "report", "prepare", "wrong", ""])
        words = rng.choices(pieces, k=rng.randint(0, 3))
        if command == "cycle":
            words.append("--dry-run")
        if command == "evaluate":
            words.append("--wrong.key=1")
        with contextlib.suppress(SystemExit):
            main([command, *words])
        assert "Traceback" not in capsys.readouterr().err


def test_paths_are_expanded_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/big")
    expected = {
        "~/runs": "/home/me/runs", "~": "/home/me", "$SCRATCH/x": "/big/x", "${SCRATCH}x": "/bigx",
        "a/~/b": "a/~/b", "runs/{seed}": "runs/{seed}", "": "", "5 $ each": "5 $ each",
        "hf://a/b": "hf://a/b",
    }  # fmt: skip
    assert {text: expanded(text) for text in expected} == expected
    for text, word in (
        ("~nobody_/x", "~nobody_"),
        ("$NOT_SET/x", "NOT_SET"),
        ("${NOT_SET}", "NOT_SET"),
    ):
        with pytest.raises(ValueError, match=word):
            expanded(text)


def test_every_path_of_a_recipe_is_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key whose default is a folder, or whose sentence speaks of a file or folder, is a path."""
    monkeypatch.setenv("HOME", "/home/me")
    places = [
        key
        for key, info in KEYS
        if info.annotation is str
        and not key.endswith((".stage", ".title", ".answers_of", "_request", ".form", ".suffix"))
        and any(w in str(info.description) for w in ("older", "file", "uestions", "rows", "Model"))
        and "{" not in str(info.description).replace("{seed}", "")
    ]
    assert {"run.folder", "model.path", "grpo.data", "data.held_out", "base.folder"} <= set(places)
    path = tmp_path / "x.toml"
    path.write_text("")
    recipe = load_recipe(path, [f"{key}=~/x" for key in places]).resolved()
    for key in places:
        value: Any = recipe
        for part in key.split("."):
            value = value[part]
        assert value == "/home/me/x", key
