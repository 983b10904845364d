"""What every table of a recipe is made of."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_FILLED_IN = re.compile(r"\{(\w+)\}")

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

    if unknown := set(_FILLED_IN.findall(_VARIABLE.sub("", text))) - {"seed", "folder"}:
        raise ValueError(
            f"'{text}': {{{min(unknown)}}} is not filled in; {{seed}} and {{folder}} are"
        )
    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if path.startswith("~"):
        raise ValueError(f"'{text}': there is no home folder of {path.partition('/')[0]}")
    return path


Place = Annotated[str, AfterValidator(expanded)]  # the path of a file or folder


def _plain_name(text: str) -> str:
    if not text.strip() or text in (".", "..") or set(text) & set("/\\\0"):
        raise ValueError(
            f"{text!r} is no name of a folder inside run.folder: give one without slashes"
        )
    return text


StageName = Annotated[str, AfterValidator(_plain_name)]

# What ovlt itself hands to apply_chat_template, or what would change the type of its result.
OWN_TEMPLATE_KEYWORDS = frozenset(
    (
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
        "messages", "return_dict", "return_tensors", "tokenize",
    )
)  # fmt: skip
TemplateValues = dict[str, bool | int | float | str]


def _template_values(values: TemplateValues) -> TemplateValues:
    if taken := sorted(values.keys() & OWN_TEMPLATE_KEYWORDS):
        raise ValueError(
            f"ovlt gives the chat template the keyword '{taken[0]}' itself: leave it out"
        )
    return values


TemplateKeywords = Annotated[TemplateValues, AfterValidator(_template_values)]


class Table(BaseModel):
    # Infinity and NaN pass every comparison the wrong way, and JSON has no word for them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        """Refuse true and false where a number belongs: pydantic reads them as 1 and 0."""
        for name, value in values.items() if isinstance(values, dict) else ():
            info = cls.model_fields.get(name)
            number = info is not None and any(info.annotation is kind for kind in (int, float))
            if number and isinstance(value, bool):
                raise ValueError(f"{name} is {str(value).lower()}, but it must be a number")
        return values


def field(default: Any, sentence: str) -> Any:
    return Field(default, description=sentence)
