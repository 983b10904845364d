"""README and docs/: links lead somewhere, commands parse, keys exist, generated text is current."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.house import FLOORS

from docs.make_keys import page as keys_page
from ovlt.__main__ import COMMANDS
from ovlt.config import Recipe
from ovlt.config.command_line import split_words
from ovlt.config.load import GONE, MOVED, leaves, load_recipe, recipe_from
from ovlt.plan.assumed import Assumptions
from ovlt.system import moved

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")]
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHELLS = ("sh", "bash")
STARTS = ("ovlt", "make", "python", "torchrun", "recipes/node.sh", "bench/on_gpu.sh")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


class Block(NamedTuple):
    """A fenced block, and the file name that the line before it gives it."""

    language: str
    text: str
    name: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        names = re.findall(r"`([\w./-]+\.(?:toml|py|jsonl))`", before)
        yield Block(match[2], match[3], names[-1] if names else "")


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of each command that the page shows."""
    for block in blocks(page):
        if block.language not in SHELLS:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0] in STARTS:
                yield words


# --- links --------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles}


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            assert path.startswith("https://"), f"{page.name}: {target} is not https"
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} is no heading"


def test_every_page_is_in_the_readme_and_in_the_navigation() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in navigation, page.name
        assert page.name == "index.md" or f"(docs/{page.name}" in readme, page.name


# --- commands -----------------------------------------------------------------------------------


def targets() -> set[str]:
    """The targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def check_make(words: list[str]) -> None:
    for word in words:
        assert "=" in word or word in targets(), f"make {word}: no such target"
        name, _, value = word.partition("=")
        if name == "ARGS":
            check_ovlt("demo", shlex.split(value), {})


def check_ovlt(command: str, words: list[str], shown: dict[str, str]) -> None:
    """Parse what follows ``ovlt COMMAND``; ``shown`` are recipes that the page itself holds."""
    if command in ("--help", "--version", "completion"):
        return
    assert command in COMMANDS, f"ovlt {command}: no such command"
    options = (*COMMANDS[command].options, "--ranks", "--help")
    assumptions = {f"--assume.{field.name}" for field in fields(Assumptions)}
    rest = []
    for word in words:
        key = word.partition("=")[0]
        if key.startswith("--assume."):
            assert command == "plan", f"ovlt {command}: {word}"
            assert key in assumptions, f"ovlt plan: {word} is no assumption"
        elif key not in options:
            rest.append(word)
    if command in ("report", "serve"):  # take a folder, no recipe
        assert not [word for word in rest if word.startswith("--")], words
        return
    names, overrides, _ = split_words(rest)
    for name in names:
        assert name in shown or (ROOT / name).is_file(), f"ovlt {command}: no recipe {name}"
    files = [ROOT / name for name in names if name not in shown]
    load_recipe(files or None, overrides)


def check_module(module: str, words: list[str], shown: dict[str, str]) -> None:
    """``python -m MODULE words`` or ``torchrun -m MODULE words``."""
    if module == "ovlt" or module.removeprefix("ovlt.") in COMMANDS:
        command = [*module.split(".")[1:], *words]
        check_ovlt(command[0], command[1:], shown)
    elif module.startswith("ovlt"):
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"no module {module}"
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        for word in words:
            option = word.partition("=")[0]
            assert not option.startswith("--") or f'"{option}"' in source, f"{module}: {word}"


@pages
def test_every_command_that_a_page_shows_can_be_typed(page: Path) -> None:
    shown = {block.name: block.text for block in blocks(page) if block.language == "toml"}
    for words in command_lines(page):
        program, rest = words[0], words[1:]
        if program == "make":
            check_make(rest)
        elif program == "ovlt":
            check_ovlt(rest[0], rest[1:], shown)
        elif "-m" in rest:
            at = rest.index("-m")
            check_module(rest[at + 1], rest[at + 2 :], shown)
        else:  # a script of the repository
            script = program if "/" in program else rest[0]
            assert (ROOT / script).is_file(), f"{page.name}: no {script}"
            for word in rest:
                assert not word.endswith(".toml") or (ROOT / word).is_file(), word


@pages
def test_every_recipe_that_a_page_shows_is_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            recipe_from(tomllib.loads(block.text), f"{page.name}: {block.text[:60]!r}")


def test_the_demo_target_and_the_examples_are_found() -> None:
    """The checks above must not pass because nothing was read."""
    shown = [words for page in PAGES for words in command_lines(page)]
    assert len(shown) > 40
    assert ["make", "demo"] in shown


# --- keys and names -----------------------------------------------------------------------------


@pages
def test_every_key_in_backticks_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # speaks of keys as they were then
        return
    known = {key for key, _ in leaves(Recipe)}
    tables = {key.rpartition(".")[0] for key in known} | set(Recipe.model_fields)
    text = prose(page)
    if page.name == "migrating.md":  # the first column has the keys of before, or of EasyR1
        text = re.sub(r"^\|.*?\|", "", text, flags=re.MULTILINE)
    rooms = {room for floor in FLOORS for room in floor}
    for code in re.findall(r"`([^`\n]+)`", text):
        match = re.match(r"(?:--)?((\w+)(?:\.\w+)+)(?= ?=|$)", code)
        if match is None or match[2] not in Recipe.model_fields or code.endswith(FILES):
            continue
        assert match[1] in known | tables | rooms, f"{page.name}: `{code}` is no key"


FILES = (".py", ".json", ".jsonl", ".md", ".toml", ".parquet", ".html")


PLACE = re.compile(r"`((?:ovlt|tests|bench|recipes|kernels|csrc|requirements|docs)/[\w./-]*)`")


@pages
def test_every_path_in_backticks_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    for place in PLACE.findall(prose(page)):
        assert (ROOT / place).exists(), f"{page.name}: no {place}"


def test_the_floors_are_those_that_the_test_of_the_house_holds() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. (`.*)$", text, re.MULTILINE)
    assert [tuple(re.findall(r"`([\w.]+)`", line)) for line in listed] == list(FLOORS)


def test_the_page_of_keys_is_current() -> None:
    current = (DOCS / "keys.md").read_text(encoding="utf-8")
    assert current == keys_page(), "python docs/make_keys.py writes it anew"


def test_every_key_that_moved_is_in_the_migration_page() -> None:
    text = (DOCS / "migrating.md").read_text(encoding="utf-8")
    for old in (*MOVED, *GONE):
        assert f"`{old}`" in text, old
    for old in moved.MOVED:
        assert f"`{old}`" in text, old


def logged_names() -> set[str]:
    """Names of metrics: the text keys of the dictionaries that the loops log."""
    places = {
        "ovlt/grpo.py": "step_metrics",
        "ovlt/sft.py": "step_metrics",
        "ovlt/train/step.py": "mfu",
        "ovlt/rollout/groups.py": "metrics",
        "ovlt/evaluate/validator.py": "measure",
    }
    names = set()
    for file, function in places.items():
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Dict):
                        names |= {k.value for k in inner.keys if isinstance(k, ast.Constant)}
                    elif isinstance(inner, ast.Subscript) and isinstance(inner.ctx, ast.Store):
                        names.add(ast.literal_eval(inner.slice))
    return {str(name) for name in names}


def test_every_logged_name_is_explained() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    names = logged_names()
    assert {"reward/mean", "nll", "mfu", "val/greedy", "groups/drawn"} <= names
    for name in names:
        assert f"`{name}`" in text, f"docs/metrics.md says nothing of {name}"


def test_every_promise_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (?!promise|---)(.*?) \| (.*?) \|$", prose(DOCS / "promises.md"), re.M)
    assert len(rows) > 20
    for promise, tests in rows:
        named = re.findall(r"`(tests/[^`]+)`", tests)
        assert named, promise
        for name in named:
            file, _, function = name.partition("::")
            assert (ROOT / file).exists(), f"{promise}: no {file}"
            if function:
                assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


# --- the front page and the site ----------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: p.name
)
def test_no_commit_is_named_in_running_text(page: Path) -> None:
    text = re.sub(r"<!-- \S+:begin -->.*?<!-- \S+:end -->", "", prose(page), flags=re.DOTALL)
    assert not re.search(r"\bcommit [0-9a-f]{7,}\b", text)


@pytest.mark.parametrize("marker", ["results", "bench-cpu", "bench-gpu"])
def test_the_commands_that_write_tables_find_their_place(marker: str) -> None:
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    (text,) = [text for text in texts if begin in text]
    assert text.index(begin) < text.index(end)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # Material announces its successor at every start, in words that are no warning of ours.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "CONTRIBUTING.html").is_file()
