"""What every reader yields: one question as a row, or the reason why there is none.

A row has EasyR1's columns ``problem`` (one ``<image>`` per image), ``answer`` (text) and ``images``
(each a path or the ``{bytes, path}`` of a parquet cell, never decoded), and ``id``, ``source``,
``kind``, ``choices``. A question with options states them in the problem, and its answer is the
letter of the right one: the benchmarks ask this way.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from ovlt.data.tables import BadRow

IMAGE_TAG = "<image>"
LETTERS = string.ascii_uppercase

# A record of a dataset's own file. What its fields hold is unknown until a reader looks at them: a
# field of another type than the reader expects makes a BadRow (`layouts.attempt`).
Record = dict[str, Any]


class QuestionRow(TypedDict):
    """One question of any dataset."""

    problem: str
    answer: str
    images: list[object]  # as ovlt.data.image_forms.image_refs reads them
    id: str
    source: str
    kind: str
    choices: list[str]
    difficulty: NotRequired[str]
    pass_rate: NotRequired[object]  # share of right answers of a model; as the file has it


def question_row(
    id: str,
    question: object,
    answer: object,
    images: Sequence[object],
    *,
    choices: Sequence[object] = (),
    kind: object = "",
) -> QuestionRow:
    """Return a row from the parts of a question; its source is filled in by ``layouts.attempt``.

    ``answer`` is text, or the letter of one of ``choices``. Image tags within the question's own
    text are taken out: the images stand in front of it. Raises BadRow: no question, no answer, no
    image.
    """
    if not isinstance(question, str) or not (question := plain(question)):
        raise BadRow("no question text")
    if not images or any(map(_missing, images)):
        raise BadRow("no image")
    text = answer_text(answer)
    options = [answer_text(choice) for choice in choices]
    if len(options) > len(LETTERS):
        raise BadRow("more choices than letters")
    return {
        "problem": IMAGE_TAG * len(images) + with_choices(question, options),
        "answer": text,
        "images": list(images),
        "id": id,
        "source": "",
        "kind": str(kind or ""),
        "choices": options,
    }


def _missing(image: object) -> bool:
    """Whether the cell of a nullable image column holds nothing."""
    if isinstance(image, dict):
        return image.get("bytes") is None and not image.get("path")
    return image is None


def with_choices(question: str, choices: Sequence[str]) -> str:
    """Return the question with its options below it, as MathVista writes them."""
    if not choices:
        return question
    lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "Choices:", *lines])


def plain(text: str) -> str:
    """Return the text without image tags and outer blanks."""
    return text.replace(IMAGE_TAG, "").strip()


def answer_text(value: object) -> str:
    """Return an answer of any JSON type as text. Raises BadRow: null, a list, an empty text.

    Super-CLEVR mixes the types: True is "Yes" and 1 is "1", though Python calls the two equal.
    """
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise BadRow("answer is no number")
        return str(int(value)) if value.is_integer() else str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow("no answer")
    if isinstance(value, str):
        return value.strip()
    raise BadRow(f"answer is a {type(value).__name__}, not a text or number")


def letter_at(index: object, choices: object) -> str:
    """Return the letter of the option at a 0-based index, an int or its digits ("0" in AI2D).

    Raises BadRow: no list of options, no such option, or the right option is listed twice, so that
    its letter is not the only right answer.
    """
    options = checked_choices(choices)
    if isinstance(index, str) and index.strip().isdecimal():
        index = int(index)
    if index is None:
        raise BadRow("no answer")
    if isinstance(index, bool) or not isinstance(index, int):
        raise BadRow("answer is not the index of a choice")
    if not 0 <= index < len(options):
        raise BadRow("answer is the index of no choice")
    if sum(same(options[index], other) for other in options) > 1:
        raise BadRow("the right choice is listed twice")
    return LETTERS[index]


def letter_of(answer: object, choices: object) -> str:
    """Return the letter of the option that reads as ``answer``. Raises BadRow as ``letter_at``."""
    options = checked_choices(choices)
    text = answer_text(answer)
    matches = [i for i, option in enumerate(options) if same(text, option)]
    if not matches:
        raise BadRow("answer is none of the choices")
    if len(matches) > 1:
        raise BadRow("the right choice is listed twice")
    return LETTERS[matches[0]]


def checked_choices(choices: object) -> list[str]:
    """Return the options as text. Raises BadRow: fewer than two, or more than letters."""
    if not isinstance(choices, list) or len(choices) < 2:
        raise BadRow("choices are not a list of two or more")
    if len(choices) > len(LETTERS):
        raise BadRow("more choices than letters")
    return [answer_text(choice) for choice in choices]


def same(a: str, b: str) -> bool:
    """Whether two options read the same, apart from case and blanks."""
    return " ".join(a.split()).casefold() == " ".join(b.split()).casefold()
