"""Where the files that ship with ovlt are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # the folder ovlt/


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: in a wheel ovlt/recipes/, else recipes/."""
    packaged = PACKAGE / "recipes"
    return packaged if packaged.is_dir() else PACKAGE.parent / "recipes"


def checkout() -> Path | None:
    """Return the root of the checkout that this code runs from, None if it runs from a wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "recipes").is_dir() else None


def recipe_path(path: Path) -> Path:
    """Return the file that ``path`` names.

    A relative ``recipes/...`` that does not exist here is the shipped file of that name, so that a
    command of the documentation works in every folder.
    """
    if not path.exists() and path.parts[:1] == ("recipes",):
        shipped = recipes_folder().joinpath(*path.parts[1:])
        return shipped if shipped.is_file() else path
    return path
