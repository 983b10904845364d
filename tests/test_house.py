"""The house: the order of its floors, and the measures that keep it readable."""

from __future__ import annotations

import ast

from helpers.house import (
    FLOORS,
    PERIPHERY,
    READING_PATH,
    REPOSITORY,
    TRAINER,
    climbs,
    comment_share,
    complexity,
    functions,
    imports,
    lazy_imports,
    lines,
    module,
    room,
    sources,
    takes_recipe,
    tree,
    uses_of_any,
)


def test_a_folder_imports_only_from_floors_below_its_own() -> None:
    assert climbs() == []


def test_every_folder_stands_on_a_floor() -> None:
    known = {room for floor in FLOORS for room in floor}
    assert {room(module(file)) for file in sources("ovlt")} - known == {"__init__"}
    assert len(list((REPOSITORY / "ovlt").glob("*.py"))) <= 5


def test_the_trainer_knows_nothing_of_demo_planner_report_or_mixtures() -> None:
    seen = {
        (room(module(file)), room(name))
        for file in sources("ovlt")
        if room(module(file)) in TRAINER
        for name, _ in imports(file)
    }
    assert not {pair for pair in seen if pair[1] in PERIPHERY}


def test_functions_stay_within_a_screen_or_two() -> None:
    large = [
        f"{module(file)}.{function.name}: {lines(function)} lines, {complexity(function)} ways"
        for file in sources("ovlt")
        for function in functions(file)
        if lines(function) > 100 or complexity(function) >= 20
    ]
    assert large == []


def test_types_stand_where_any_could() -> None:
    assert sum(map(uses_of_any, sources())) < 120


def test_imports_stand_at_the_top_of_files() -> None:
    assert sum(len(lazy_imports(file)) for file in sources()) < 40


def test_the_recipe_is_handed_over_narrowly() -> None:
    takers = [f"{module(file)}.{name}" for file in sources("ovlt") for name in takes_recipe(file)]
    assert len(takers) < 20, takers


def test_the_reading_path_explains_itself() -> None:
    assert comment_share([REPOSITORY / name for name in READING_PATH]) >= 0.12


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for file in sources():
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(file.relative_to(REPOSITORY)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
