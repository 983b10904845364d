"""What every table of a recipe is made of."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def expanded(text: str) -> str:
    """Return a path with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` filled in, as a shell does.

    Raises ValueError for a user or variable that does not exist: a folder of that very name would
    be made otherwise.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in os.environ:
            raise ValueError(f"'{text}': there is no environment variable {name}")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if path.startswith("~"):
        raise ValueError(f"'{text}': there is no home folder of {path.partition('/')[0]}")
    return path


Place = Annotated[str, AfterValidator(expanded)]  # the path of a file or folder


class Table(BaseModel):
    # Infinity and NaN pass every comparison the wrong way, and JSON has no word for them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def field(default: Any, sentence: str) -> Any:
    return Field(default, description=sentence)
