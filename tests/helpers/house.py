"""Measures of the source itself, by its syntax trees: ``python tests/helpers/house.py`` prints them."""

from __future__ import annotations

import ast
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
    ("evaluate",),
    ("sft", "grpo", "distill"),
    ("report",),
    ("smoke",),
    ("cycle",),
    ("plan",),
    ("__main__",),
)
TRAINER = ("sft", "grpo", "types", "train", "rollout", "evaluate", "reward", "model", "data", "run")
# From the prompt to the gradient and back, in the order in which one reads it.
READING_PATH = (
    "ovlt/grpo.py", "ovlt/sft.py", "ovlt/train/step.py", "ovlt/rollout/groups.py",
    "ovlt/rollout/vllm.py", "ovlt/rollout/sync.py", "ovlt/train/pack.py", "ovlt/train/loss.py",
)  # fmt: skip


def sources(*folders: str) -> list[Path]:
    """The Python files of these folders of the repository."""
    return [f for name in folders or ("ovlt", "kernels") for f in sorted((REPOSITORY / name).rglob("*.py"))]  # fmt: skip


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module(file: Path) -> str:
    """``ovlt/train/pack.py`` -> ``train.pack``; the package itself is ``__init__``."""
    parts = file.relative_to(REPOSITORY / "ovlt").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The folder of a module, or the module itself where it lies directly in ovlt."""
    known = {room for floor in FLOORS for room in floor}
    parts = name.split(".")
    return next((r for n in (2, 1) if (r := ".".join(parts[:n])) in known), parts[0])


def imports(file: Path) -> Iterator[tuple[str, ast.stmt]]:
    """(module of ovlt, statement) of every import of one, also those inside functions."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ovlt":
            inside = node.module.removeprefix("ovlt").removeprefix(".")
            for alias in node.names:
                below = f"{inside}.{alias.name}".strip(".")
                path = REPOSITORY / "ovlt" / below.replace(".", "/")
                yield (
                    (below if path.is_dir() or path.with_suffix(".py").is_file() else inside),
                    node,
                )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ovlt."):
                    yield alias.name.removeprefix("ovlt."), node


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, ast.FunctionDef))


def lines(function: ast.FunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.comprehension, ast.Assert)


def complexity(function: ast.FunctionDef) -> int:
    """McCabe's number: one, and one for each branch, loop, condition and ``and`` or ``or``."""
    nodes = list(ast.walk(function))
    ways = sum(isinstance(node, BRANCHES) for node in nodes)
    ways += sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    ways += sum(len(node.cases) for node in nodes if isinstance(node, ast.Match))
    return 1 + ways


def lazy_imports(file: Path) -> list[int]:
    """Lines of imports inside functions."""
    return [
        node.lineno
        for function in functions(file)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def uses_of_any(file: Path) -> int:
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree(file)))


def comment_share(files: list[Path]) -> float:
    """Lines that hold a comment, as a share of the lines of code (docstrings and blanks left out)."""
    import io
    import tokenize

    comments = code = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        docs = set()
        for node in ast.walk(ast.parse(text)):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):  # fmt: skip
                docs |= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        comments += len({t.start[0] for t in tokens if t.type == tokenize.COMMENT})
        skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)  # fmt: skip
        code += len({t.start[0] for t in tokens if t.type not in skip} - docs)
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
    everything = sources()
    of_ovlt = sources("ovlt")
    print("Any:", sum(map(uses_of_any, everything)), {
        f"{f.relative_to(REPOSITORY)}": n for f in everything if (n := uses_of_any(f)) > 5
    })  # fmt: skip
    print("lazy imports:", sum(len(lazy_imports(f)) for f in everything), {
        f"{f.relative_to(REPOSITORY)}": len(n) for f in everything if (n := lazy_imports(f))
    })  # fmt: skip
    print("recipe: Recipe:", sum(len(takes_recipe(f)) for f in of_ovlt), {
        module(f): n for f in of_ovlt if (n := takes_recipe(f))
    })  # fmt: skip
    print(
        f"comments on the reading path: {comment_share([REPOSITORY / p for p in READING_PATH]):.1%}"
    )
    for file in everything:
        for function in functions(file):
            if lines(function) > 100 or complexity(function) >= 20:
                print(f"{file.relative_to(REPOSITORY)} {function.name}: {lines(function)} lines, complexity {complexity(function)}")  # fmt: skip
    level = {room: n for n, floor in enumerate(FLOORS) for room in floor}
    for file in of_ovlt:
        here = room(module(file))
        for name, node in imports(file):
            there = room(name)
            if "__init__" not in (here, there) and there != here and level[there] >= level[here]:
                print(f"{file.relative_to(REPOSITORY)}:{node.lineno}: {here} imports {there}")


if __name__ == "__main__":
    main()
