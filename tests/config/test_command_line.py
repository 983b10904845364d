"""What a command line says: recipes laid over each other, overrides, keys that moved, and help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from ovlt.__main__ import COMMANDS
from ovlt.config import Recipe
from ovlt.config.command_line import command_line
from ovlt.config.load import MOVED, REPOSITORY, leaves, load_recipe


def test_a_command_line_is_a_recipe_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nseed = 2\n[grpo]\nsteps = 5")
    for argv in (
        [str(path), "--grpo.steps=9", "--resume", "auto"],
        ["--grpo.steps", "9", str(path), "--resume=auto"],
        ["--run.resume=auto", "--grpo.steps=9", str(path)],
    ):
        got = command_line("grpo", "", ("grpo",), argv)
        assert (got.run.seed, got.grpo.steps, got.run.resume) == (2, 9, "auto")
    assert command_line("grpo", "", ("grpo",), []) == load_recipe()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--grpo.stpes=3"], "ovlt grpo: "),
        (["no/such.toml"], "ovlt grpo: no recipe at no/such.toml"),
        (["--grpo.steps"], "grpo.steps: Input should be a valid integer"),
        (["--resume", "sometimes"], "run.resume: Input should be 'auto' or 'never'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_two(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line("grpo", "", ("grpo",), argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1


def test_several_recipes_are_laid_over_each_other_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        "[run]\nseed = 2\n[grpo]\nsteps = 5\n[grpo.loss]\nkl_coef = 0.5\nclip_low = 0.1\n"
        "[[cycle.iterations]]\n[[cycle.iterations]]\n"
    )
    (tmp_path / "mine.toml").write_text(
        "[grpo.loss]\nkl_coef = 0.0\n[reward]\nfunction = 'exact'\n[[cycle.iterations]]\n"
    )
    names = [str(tmp_path / name) for name in ("base.toml", "mine.toml")]
    got = command_line("grpo", "", ("grpo",), [names[0], "--grpo.steps=7", names[1]])
    assert (got.run.seed, got.grpo.steps) == (2, 7)
    assert (got.grpo.loss.kl_coef, got.grpo.loss.clip_low) == (0.0, 0.1)
    assert got.reward.function == "exact"
    assert len(got.cycle.iterations) == 1  # a list replaces a list
    assert command_line("grpo", "", ("grpo",), names[::-1]).grpo.loss.kl_coef == 0.5
    with pytest.raises(ValueError, match=r"base\.toml \+ .*mine\.toml: .*stpes"):
        load_recipe(names, ["--grpo.stpes=3"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[grpo.reward]\nfunction = 'exact'", "'grpo.reward' has moved: it is 'reward' now"),
        ("[grpo.rollout]\nengine = 'vllm'", "it is 'engine.backend' now"),
        ("[grpo.rollout]\ngpu_memory = 0.5", "it is 'engine.gpu_memory' now"),
        ("[distill]\ntensor_parallel = 2", "it is 'distill.engine.tensor_parallel' now"),
        (
            "[demo]\nrejection_n = 2",
            "'demo.rejection_n' is gone: `ovlt cycle --controls=rejection`",
        ),
    ],
)
def test_a_key_of_an_older_recipe_is_answered_with_its_new_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "old.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_recipe(tmp_path / "old.toml")


def test_every_key_that_has_moved_is_one_now() -> None:
    tables = dict(leaves(Recipe))
    for old, new in MOVED.items():
        assert old not in tables
        assert any(key == new or key.startswith(f"{new}.") for key in tables), new


def test_a_table_that_is_not_set_is_set_and_unset_over_a_record(tmp_path: Path) -> None:
    """A record of a stage holds null for it."""
    key, path = "distill.captioner_chat_template_kwargs", tmp_path / "recipe.json"
    path.write_text(json.dumps(load_recipe().resolved()))
    for word, values in (("=", None), ("={}", {}), (".thinks=false", {"thinks": False})):
        recipe = load_recipe(path, [f"--{key}{word}"])
        assert recipe.distill.captioner_chat_template_kwargs == values
        path.write_text(json.dumps(recipe.resolved()))
    assert load_recipe(path, [f"--{key}="]).distill.captioner_chat_template_kwargs is None


@pytest.mark.parametrize("command", [name for name, c in COMMANDS.items() if not c.own_help])
def test_help_lists_every_key_without_loading_torch(command: str) -> None:
    script = (
        "import sys\n"
        "from ovlt.__main__ import main\n"
        "try:\n"
        f"    main(['{command}', '--help'])\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'transformers', 'vllm', 'numpy', 'PIL', 'matplotlib', 'pyarrow'}\n"
        "    print(stop.code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.stderr == "0 []\n"
    shown = dict(
        re.findall(r"^  --(\w+\.[\w.]+)=(.*?)(?:  +|(?<=\S) (?=\S)|$)", done.stdout, re.MULTILINE)
    )

    def keys(model: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += keys(kind, f"{prefix}.{name}")
            else:
                found.append(f"{prefix}.{name}")
        return found

    expected = []
    for table in COMMANDS[command].tables:
        annotation = Recipe.model_fields[table].annotation
        assert annotation is not None
        expected += keys(annotation, table)
    assert list(shown) == expected
    assert "recipes/smoke.toml" in done.stdout


def test_values_as_help_shows_them_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line("grpo", "", ("grpo",), ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    arguments = ["--grpo.loss.kl_coef=0.01", "--grpo.optim.betas=[0.9, 0.999]"]
    arguments += ["--grpo.advantage_std=true", "--grpo.loss.kl_estimator=k3", "--grpo.start="]
    for argument in arguments:
        assert re.search(rf"^  {re.escape(argument)}  ", shown, re.MULTILINE), argument
        load_recipe(None, [argument])
    assert "One of: k1 | k2 | k3." in shown
