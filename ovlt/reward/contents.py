"""What a reward is, in one digest: its file, and the files beside it that it imports."""

from __future__ import annotations

import ast
from pathlib import Path

from ovlt.system.digest import digest_of


def reward_digest(spec: str) -> str:
    """Return a digest of a reward named as in a recipe; of a shipped one it is the name."""
    path, colon, name = spec.rpartition(":")
    file = Path(path).expanduser()
    if not colon or not file.is_file():
        return spec
    files = sorted(_with_imports(file.resolve()))
    return digest_of([name, *(part for f in files for part in (f.name, f.read_bytes()))])


def _with_imports(file: Path) -> set[Path]:
    """Return a Python file and those beside it that it imports, in turn; nothing is run."""
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        try:
            tree = ast.parse(current.read_bytes())
        except (ValueError, SyntaxError, RecursionError):
            continue  # loading the reward says what is wrong with it
        for module in _imported(tree):
            beside = file.parent.joinpath(*module.split("."))
            candidates = (beside.with_suffix(".py"), beside / "__init__.py")
            waiting += [path for path in candidates if path.is_file()]
    return seen


def _imported(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
