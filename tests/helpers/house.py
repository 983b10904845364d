"""Measures of the source by its syntax trees; ``python tests/helpers/house.py`` prints them."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# The floors of ovlt, lowest first: a folder imports only from floors below its own.
FLOORS = (
    ("config",),
    ("system",),
    ("types",),
    ("model",),
    ("data", "reward", "run"),
    ("data.readers", "data.worlds"),
    ("data.mixture",),
    ("train",),
    ("rollout",),
    ("benchmarks",),
    ("evaluate",),
    ("sft", "grpo", "distill"),
    ("report",),
    ("smoke",),
    ("cycle",),
    ("plan",),
    ("__main__",),
)
# Files that are run by `python -m` or torchrun, and so may import the one entry.
ENTRIES = ("__main__.py", "rank.py")
TRAINER = (
    "sft", "grpo", "types", "train", "rollout", "benchmarks", "evaluate", "reward", "model", "data",
    "run",
)  # fmt: skip
PERIPHERY = ("smoke", "plan", "report", "cycle", "distill", "data.mixture", "data.worlds")
# From the prompt to the gradient and back, in the order in which one reads it.
READING_PATH = (
    "ovlt/grpo.py",
    "ovlt/sft.py",
    "ovlt/train/step.py",
    "ovlt/rollout/groups.py",
    "ovlt/rollout/vllm.py",
    "ovlt/rollout/sync.py",
    "ovlt/train/pack.py",
    "ovlt/train/loss.py",
)


def sources(*folders: str) -> list[Path]:
    """List the Python files of these folders of the repository."""
    names = folders or ("ovlt", "kernels")
    return [file for name in names for file in sorted((REPOSITORY / name).rglob("*.py"))]


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module(file: Path) -> str:
    """``ovlt/train/pack.py`` -> ``train.pack``; the package itself is ``__init__``."""
    parts = file.relative_to(REPOSITORY / "ovlt").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The folder of a module, or the module itself if it lies directly in ovlt."""
    known = {room for floor in FLOORS for room in floor}
    parts = name.split(".")
    return next((r for n in (2, 1) if (r := ".".join(parts[:n])) in known), parts[0])


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """(module of ovlt, line) of every import of one, also of those inside functions."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ovlt":
            package = node.module.removeprefix("ovlt").removeprefix(".")
            for alias in node.names:
                name = f"{package}.{alias.name}".strip(".")
                path = REPOSITORY / "ovlt" / name.replace(".", "/")
                is_module = path.is_dir() or path.with_suffix(".py").is_file()
                yield (name if is_module else package or "__init__"), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ovlt."):
                    yield alias.name.removeprefix("ovlt."), node.lineno


def climbs() -> list[str]:
    """Imports of a folder that does not stand lower, as sentences."""
    level = {room: n for n, floor in enumerate(FLOORS) for room in floor} | {"__init__": -1}
    return [
        f"{file.relative_to(REPOSITORY)}:{line}: {here} imports {there}"
        for file in sources("ovlt")
        if (here := room(module(file))) != "__init__"
        for name, line in imports(file)
        if name != "__main__" or (file.name not in ENTRIES and here not in ("sft", "grpo"))
        if (there := room(name)) != here and level[there] >= level[here]
    ]


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, ast.FunctionDef))


def lines(function: ast.FunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.comprehension, ast.Assert)


def complexity(function: ast.FunctionDef) -> int:
    """McCabe's number: one, and one for each branch, loop, condition, ``and`` and ``or``."""
    nodes = list(ast.walk(function))
    ways = sum(isinstance(node, BRANCHES) for node in nodes)
    ways += sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    ways += sum(len(node.cases) for node in nodes if isinstance(node, ast.Match))
    return 1 + ways


def lazy_imports(file: Path) -> list[int]:
    """Lines of imports inside functions."""
    numbers = {
        node.lineno
        for function in functions(file)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return sorted(numbers)


def uses_of_any(file: Path) -> int:
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree(file)))


def comment_share(files: list[Path]) -> float:
    """Lines that hold a comment, as a share of the lines of code (no docstrings, no blanks)."""
    comments = code = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        docstrings: set[int] = set()
        for node in ast.walk(ast.parse(text)):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                value = body[0].value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    docstrings |= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        comments += len({t.start[0] for t in tokens if t.type == tokenize.COMMENT})
        kinds = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
        code += len({t.start[0] for t in tokens if t.type in kinds} - docstrings)
    return comments / max(1, code)


def takes_recipe(file: Path) -> list[str]:
    """Functions that are given the whole recipe."""
    return [
        function.name
        for function in functions(file)
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Recipe"
    ]


def main() -> None:
    everything, of_ovlt = sources(), sources("ovlt")

    def by_file(counts: dict[Path, int], least: int) -> str:
        top = sorted(((n, str(f.relative_to(REPOSITORY))) for f, n in counts.items() if n >= least))
        return ", ".join(f"{name} {n}" for n, name in reversed(top))

    uses = {file: uses_of_any(file) for file in everything}
    print(f"Any: {sum(uses.values())}; {by_file(uses, 5)}")
    lazy = {file: len(lazy_imports(file)) for file in everything}
    print(f"lazy imports: {sum(lazy.values())}; {by_file(lazy, 1)}")
    takers = [f"{module(file)}.{name}" for file in of_ovlt for name in takes_recipe(file)]
    print(f"recipe: Recipe: {len(takers)}; {', '.join(takers)}")
    for name in READING_PATH:
        print(f"comments: {comment_share([REPOSITORY / name]):.1%} {name}")
    whole = comment_share([REPOSITORY / name for name in READING_PATH])
    print(f"comments on the reading path: {whole:.1%}")
    for file in everything:
        for function in functions(file):
            if lines(function) > 100 or complexity(function) >= 20:
                print(
                    f"{file.relative_to(REPOSITORY)} {function.name}: {lines(function)} lines, "
                    f"complexity {complexity(function)}"
                )
    print("\n".join(climbs()))


if __name__ == "__main__":
    main()
