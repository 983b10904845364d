"""Load a reward by its name in the recipe: a shipped one, or a function of a file."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import cast

from ovlt.reward import mathematics, symbolic, units
from ovlt.reward.functions import (
    AnyRewardFunction,
    RewardFunction,
    RewardInput,
    RewardOutput,
    answer_reward,
    exact_reward,
    form_of,
    judges_reward,
    math_verify_reward,
    mathruler_reward,
    released_reward,
)
from ovlt.reward.grading import grade

_SHIPPED: dict[str, RewardFunction] = {
    "answer": answer_reward,
    "math_verify": math_verify_reward,
    "mathruler": mathruler_reward,
    "judges": judges_reward,
    "released": released_reward,
    "exact": exact_reward,
}
# The libraries that a shipped reward uses, imported before the first answer's time limit begins.
_WARM_UPS: dict[str, tuple[Callable[[], None], ...]] = {
    "answer": (mathematics.warm_up, units.warm_up),
    "math_verify": (mathematics.warm_up,),
    "mathruler": (symbolic.warm_up,),
    "judges": (mathematics.warm_up, units.warm_up, symbolic.warm_up),
    "released": (symbolic.warm_up,),
    "exact": (),
}


def warm_up(spec: str, function: AnyRewardFunction) -> None:
    """Import the libraries that a reward uses; a file of one's own may use ovlt's ``grade``."""
    module = sys.modules.get(function.__module__)
    uses_grade = spec not in _SHIPPED and module is not None and grade in vars(module).values()
    for prepare in (
        _WARM_UPS["judges" if uses_grade else spec] if uses_grade or spec in _SHIPPED else ()
    ):
        prepare()


def load_reward(spec: str) -> AnyRewardFunction:
    """Return the shipped reward of a name, or the function of "path/to/file.py:function".

    Runs the file, after appending its folder to ``sys.path`` so that it can import its neighbours.
    ValueError says what is wrong with the name, the file, the function or its signature.
    """
    if spec in _SHIPPED:
        return _SHIPPED[spec]
    path_text, colon, name = spec.rpartition(":")
    if not colon or not path_text or not name:
        raise ValueError(
            f"reward {spec!r} is neither a shipped reward ({', '.join(_SHIPPED)}) nor "
            f"'path/to/file.py:function'{_nearest(spec, list(_SHIPPED))}"
        )
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        beside = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ValueError(f"reward file {path} does not exist{_nearest(path.name, beside)}")
    module = _run_file(path)
    function = getattr(module, name, None)
    if function is None:
        names = _functions_of(module)
        has = f"it has {', '.join(names)}" if names else "it defines no function"
        raise ValueError(f"reward file {path} has no {name!r}; {has}{_nearest(name, names)}")
    if not callable(function):
        raise ValueError(f"{name!r} in reward file {path} is not a function")
    try:
        inspect.signature(function).bind(RewardInput("", ""))
    except TypeError as error:
        shape = f"def {name}(x: RewardInput) -> RewardOutput"
        what = "a RewardInput"
        if form_of(function) == "batch":
            shape = f"@batch def {name}(xs: list[RewardInput]) -> list[RewardOutput]"
            what = "a list of RewardInput"
        raise ValueError(
            f"{name!r} in reward file {path} must take one argument, {what}: {shape} ({error})"
        ) from None
    return cast(AnyRewardFunction, function)


def _functions_of(module: ModuleType) -> list[str]:
    """Return the names of the functions that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]


def _run_file(path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"ovlt_reward_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"reward file {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its own module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (at[-1] if at else "?")
        raise ValueError(
            f"reward file {path} fails at line {line} when it is loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    return module


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_output(output: object) -> RewardOutput:
    """Return ``output`` with plain floats and strings; ValueError if it is not valid."""
    if not isinstance(output, RewardOutput):
        raise ValueError(f"a {type(output).__name__} instead of RewardOutput(score, parts, reason)")
    return checked_output(output.score, output.parts, output.reason, output.failed)


def checked_output(score: object, parts: object, reason: object, failed: object) -> RewardOutput:
    """Return the RewardOutput of these fields; ValueError if one of them is not valid.

    Numbers and booleans may be Python's, numpy's or torch's.
    """
    if not isinstance(parts, dict) or not all(isinstance(key, str) for key in parts):
        raise ValueError("parts must be a dict from names to numbers")
    if not isinstance(reason, str):
        raise ValueError(f"reason must be a str, not {type(reason).__name__}")
    floats = {key: _finite(f"part {key!r}", value) for key, value in parts.items()}
    return RewardOutput(_finite("score", score), floats, reason, bool(_plain(failed)))


def _plain(value: object) -> object:
    """Return the Python number in a scalar of numpy or torch, or the value itself."""
    item = getattr(value, "item", None)
    if isinstance(value, Real) or not callable(item):
        return value
    try:
        return item()
    except (ValueError, RuntimeError, TypeError):  # an array of several numbers
        return value


def _finite(name: str, value: object) -> float:
    value = _plain(value)
    try:
        number = float(value) if isinstance(value, Real | Decimal) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {repr(value)[:80]}")
    return number
