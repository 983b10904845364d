"""The families of models that ovlt trains, by the ``model_type`` of config.json.

A family is two files of this folder and a name in ``NAMES``: ``NAME_sizes.py`` (``FamilySizes``;
no torch, so that the planner stays light) and ``NAME.py`` (``FamilyModel``). Nothing else knows a
family: the rest of the program asks ``family_of(config)``. docs/families.md says what to write.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from ovlt.model.families.interface import FamilyModel, FamilySizes

NAMES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")


class Typed(Protocol):
    model_type: str


@dataclass(frozen=True)
class ModelFamily:
    """A family of models; its files are imported when they are asked for."""

    name: str  # model_type of config.json

    @functools.cached_property
    def sizes(self) -> FamilySizes:
        """What can be counted without torch."""
        return cast("FamilySizes", importlib.import_module(f"{__name__}.{self.name}_sizes"))

    @functools.cached_property
    def model(self) -> FamilyModel:
        """The packed model, its plans and names; imports transformers' modelling file."""
        return cast("FamilyModel", importlib.import_module(f"{__name__}.{self.name}"))


_FAMILIES = {name: ModelFamily(name) for name in NAMES}


def is_known(model_type: str) -> bool:
    """Return whether ovlt trains models of this type."""
    return model_type in _FAMILIES


def family_of(config: Typed) -> ModelFamily:
    """Return the family of a configuration that ``require`` has let pass."""
    return _FAMILIES[config.model_type]


def family_named(name: str) -> ModelFamily:
    """Return the family that a recipe names. Raises ValueError."""
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"ovlt knows {_listed(NAMES)}"
        raise ValueError(f"there is no family of models '{name}'; {hint}")
    return _FAMILIES[name]


def require(path: Path, model_type: str) -> ModelFamily:
    """Return the family of the folder ``path``. Raises ValueError that says what can be done."""
    if model_type in _FAMILIES:
        return _FAMILIES[model_type]
    raise ValueError(
        f"{path} holds a '{model_type}' model; ovlt knows {_listed(NAMES)}{_advice(model_type)}"
    )


def family_to_plan(path: Path, model_type: object, *, text_only: bool) -> ModelFamily:
    """Return the family by which the configuration ``path`` is counted. Raises ValueError.

    ``text_only`` also takes text models that have the decoder of a family.
    """
    text_types = {kind: f for f in _FAMILIES.values() for kind in f.sizes.TEXT_TYPES}
    known = _FAMILIES | (text_types if text_only else {})
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    raise ValueError(
        f"{path} describes a '{model_type}' model; ovlt knows {_listed(tuple(known))}"
        f"{_advice(str(model_type))}"
    )


def _advice(model_type: str) -> str:
    """Say what is nearest to a type that ovlt does not train, and what can be done."""
    if "_moe" in model_type:
        dense = model_type.partition("_moe")[0]
        of_family = f" of '{dense}'" if dense in _FAMILIES else ""
        return f": mixtures of experts are not trained; take a dense model{of_family}"
    for family in _FAMILIES.values():
        if model_type.startswith(f"{family.name}_") and model_type.endswith(("_text", "_vision")):
            return f": this is one part of a '{family.name}' model; take the folder of the whole"
        if model_type in family.sizes.TEXT_TYPES:
            return (
                f": this is a text-only model with the decoder of '{family.name}'; it can be "
                "distill.teacher, but it has no vision tower to train"
            )
    near = difflib.get_close_matches(model_type, NAMES, n=1, cutoff=0.7)
    nearest = f"; nearest is '{near[0]}'" if near else ""
    return f"{nearest} (docs/families.md says how to add a family)"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(f"'{name}'" for name in names)
