"""Families of models are files beside each other: nothing else in the program knows one."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import house

from ovlt.model import families
from ovlt.model.families import NAMES, family_named, family_to_plan, interface, require

FOLDER = house.REPOSITORY / "ovlt" / "model" / "families"
# The family of the base model that is made from nothing is a recipe's, with a default.
ALLOWED = {"ovlt/config/smoke.py"}


def words_of(file: Path) -> list[tuple[str, int]]:
    """Names, modules and texts of a file, but for comments and docstrings."""
    tree = house.tree(file)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words.append((node.value, node.lineno))
        elif isinstance(node, ast.Name | ast.Attribute):
            words.append((node.id if isinstance(node, ast.Name) else node.attr, node.lineno))
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names]
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            words += [(f"{module}.{name}", node.lineno) for name in names]
    return words


def test_nothing_outside_their_folder_knows_a_family() -> None:
    """Neither the name, nor a class or module of transformers: Qwen2_5_VL..., qwen3_vl..."""
    marks = {mark for name in NAMES for mark in (name, name.replace("_", ""))}
    found = [
        f"{path}:{line}: {word[:60]}"
        for file in house.sources("ovlt")
        if FOLDER not in file.parents
        if (path := str(file.relative_to(house.REPOSITORY))) not in ALLOWED
        for word, line in words_of(file)
        if any(mark in word.lower() for mark in marks)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [interface.FamilySizes, interface.FamilyModel])
def test_the_files_of_a_family_hold_all_that_is_asked_of_them(name: str, protocol: type) -> None:
    family = family_named(name)
    module = family.sizes if protocol is interface.FamilySizes else family.model
    asked = {n for n in vars(protocol) if not n.startswith("_")} | set(protocol.__annotations__)
    for attribute in asked:
        assert hasattr(module, attribute), attribute
        if inspect.isfunction(method := vars(protocol).get(attribute)):
            parameters = list(inspect.signature(method).parameters)[1:]
            assert list(inspect.signature(getattr(module, attribute)).parameters) == parameters


def test_sizes_need_no_torch() -> None:
    code = (
        "import sys; from ovlt.model.families import NAMES, family_named\n"
        "for name in NAMES: family_named(name).sizes\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_family_is_refused_with_what_can_be_done() -> None:
    with pytest.raises(ValueError, match=r"no family of models 'qwen2_5_v1'; did you mean"):
        family_named("qwen2_5_v1")
    folder = Path("models/x")
    for kind, sentence in (
        ("qwen2_5_vl_next", r"models/x holds a 'qwen2_5_vl_next' model; .*nearest is 'qwen2_5_vl'"),
        ("llava", r"'llava' model; ovlt knows .*docs/families\.md"),
        ("qwen3_vl_moe", r"mixtures of experts are not trained; take a dense model of 'qwen3_vl'"),
        ("qwen3_vl_text", r"one part of a 'qwen3_vl' model; take the folder of the whole"),
        ("qwen2", r"text-only model with the decoder of 'qwen2_5_vl'; it can be distill\.teacher"),
    ):
        with pytest.raises(ValueError, match=sentence):
            require(folder, kind)
    assert family_to_plan(folder, "qwen2", text_only=True) == families.family_named("qwen2_5_vl")
    with pytest.raises(ValueError, match="text-only"):
        family_to_plan(folder, "qwen2", text_only=False)
