"""What every reader yields: one question as a plain dict, or the reason why there is none.

A row has EasyR1's columns ``problem`` (one ``<image>`` per image), ``answer`` (text) and ``images``
(each a path or the ``{bytes, path}`` of a parquet cell, never decoded), and ``id``, ``source``,
``kind``, ``choices``. A question with options states them in the problem and has the letter of the
right one as its answer, which is how the benchmarks ask.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from ovlt.data.tables import BadRow

IMAGE_TAG = "<image>"
LETTERS = string.ascii_uppercase

Record = dict[str, Any]  # of a dataset's own file
Row = dict[str, Any]


def question_row(
    id: str,
    question: Any,
    answer: Any,
    images: Sequence[Any],
    *,
    choices: Sequence[Any] = (),
    kind: Any = "",
    source: str = "",
) -> Row:
    """A row from a question's parts; ``answer`` is text, or the letter of one of ``choices``.

    Image tags within the question's own text are taken out: the images stand in front of it.
    Raises BadRow: no question, no answer, no image.
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
        "source": source,
        "kind": str(kind or ""),
        "choices": options,
    }


def _missing(image: Any) -> bool:
    """Whether a nullable image column holds nothing here."""
    if isinstance(image, dict):
        return image.get("bytes") is None and not image.get("path")
    return image is None


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its options below it, as MathVista writes them."""
    if not choices:
        return question
    lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "Choices:", *lines])


def plain(text: str) -> str:
    """Without image tags and outer blanks."""
    return text.replace(IMAGE_TAG, "").strip()


def answer_text(value: Any) -> str:
    """An answer of any JSON type as text. Raises BadRow for a null, a list, an empty text.

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


def letter_at(index: Any, choices: Any) -> str:
    """The letter of the option at a 0-based index, an int or its digits as text ("0" in AI2D).

    Raises BadRow: no list of options, no such option, or the right option stands there twice, so
    that its letter is not the only right answer.
    """
    choices = checked_choices(choices)
    if isinstance(index, str) and index.strip().isdecimal():
        index = int(index)
    if index is None:
        raise BadRow("no answer")
    if isinstance(index, bool) or not isinstance(index, int):
        raise BadRow("answer is not the index of a choice")
    if not 0 <= index < len(choices):
        raise BadRow("answer is the index of no choice")
    if sum(same(choices[index], other) for other in choices) > 1:
        raise BadRow("the right choice stands there twice")
    return LETTERS[index]


def letter_of(answer: Any, choices: Any) -> str:
    """The letter of the option that reads as ``answer``. Raises BadRow as ``letter_at`` does."""
    choices = checked_choices(choices)
    text = answer_text(answer)
    found = [i for i, choice in enumerate(choices) if same(text, choice)]
    if not found:
        raise BadRow("answer is none of the choices")
    if len(found) > 1:
        raise BadRow("the right choice stands there twice")
    return LETTERS[found[0]]


def checked_choices(choices: Any) -> list[str]:
    """Options as text. Raises BadRow where there are fewer than two or more than letters."""
    if not isinstance(choices, list) or len(choices) < 2:
        raise BadRow("choices are not a list of two or more")
    if len(choices) > len(LETTERS):
        raise BadRow("more choices than letters")
    return [answer_text(choice) for choice in choices]


def same(a: str, b: str) -> bool:
    """Whether two options read the same, but for case and blanks."""
    return " ".join(a.split()).casefold() == " ".join(b.split()).casefold()
