"""Questions out of chat turns: LLaVA-OneVision, MathV360K and the_cauldron keep them so.

A human turn holds an instruction ("Hint: Please answer ...", "Answer with the letter."), the
question and perhaps its options in one of several notations; the reply holds the answer in a
sentence. Both are taken apart here. A reply that is prose, or that names none of the options, has
no verifiable answer: a BadRow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ovlt.data.readers.layouts import Asked, Table
from ovlt.data.readers.rows import (
    LETTERS,
    Record,
    Row,
    checked_choices,
    letter_at,
    letter_of,
    plain,
    question_row,
    same,
)
from ovlt.data.tables import BadRow

MAX_ANSWER_WORDS = (
    12  # a longer reply is prose; the longest captions of MapQA's regions are shorter
)

# Instructions stand on lines of their own, at the start or the end.
_INSTRUCTION = re.compile(
    r"(?:hint: *)?(?:"
    r"please (?:answer|select|choose|provide|first)\b.*"
    r"|first perform reasoning\b.*"
    r"|answer (?:the question )?(?:with|using|by|yes or no|briefly|directly)\b.*"
    r"|(?:select|choose|pick|indicate|make your selection|identify)\b[^?]*"
    r"\b(?:options?|choices?|answer|response|solution)\b[^?]*"
    r"|(?:give|write|provide|offer|make|keep|be|ensure|your|quick|short|concise)\b[^?]*"
    r"\b(?:brief|short|quick|response|succinct|concise|compact|terse|point|direct|brevity)\b[^?]*"
    r"|rationale: .*"
    r")[.:!]? *",
    re.IGNORECASE,
)
_MATHVISTA = re.compile(r"hint: *please\b.*?\bquestion: *", re.IGNORECASE | re.DOTALL)
_BLOCK = re.compile(  # on a line of its own, or running on where its first option follows
    r"(?:^|\n) *(?:choices|options) *: *|\s(?:choices|options) *: *(?=\(?A[).:])", re.IGNORECASE
)
_MARKS = (r"\(%s\)", r"%s\.", r"%s:", r"%s\)")  # "(A) x", "A. x", "A: x", "A) x"
_PLACES = (r"(?:^|\n)[ \t]*", r"(?:^|\s)")  # each option on a line of its own, or all on one
_SAID = re.compile(
    r"(?:\bthe (?:final |correct )?(?:answer|option) is\b *:?|\banswer *:)", re.IGNORECASE
)
_ABBREVIATION = re.compile(r"(?:\b\w\.){2,}$", re.UNICODE)  # "2:10 P.M." keeps its full stop


def parse_turn(human: str, reply: str) -> tuple[str, str, list[str]]:
    """(question, answer, options) of a turn and its reply; the answer is a letter if there are any.

    Raises BadRow.
    """
    question, choices = split_choices(_without_instructions(plain(human)))
    said = _said(reply)
    if not choices:
        if len(said.split()) > MAX_ANSWER_WORDS:
            raise BadRow("reply is prose, not an answer")
        return question, said, []
    return question, _letter_said(said, choices), choices


def bare_question(text: str) -> str:
    """What is asked, without image tags, instructions and options."""
    text = _without_instructions(plain(text))
    try:
        return split_choices(text)[0]
    except BadRow:
        return text


def split_choices(text: str) -> tuple[str, list[str]]:
    """A question and the options that stand below it, without the question's own label."""
    head, choices = text, []
    blocks = list(_BLOCK.finditer(text))
    if blocks:
        block = blocks[-1]  # the question itself may speak of choices
        head, tail = text[: block.start()], text[block.end() :]
        choices = _marked(tail)
        if not choices and block[0].strip().lower().startswith("options"):
            # the_cauldron's A-OKVQA lists its options bare: "Options: Food, cigarette."
            choices = [part.strip() for part in tail.strip().removesuffix(".").split(",")]
        if not choices:
            raise BadRow("choices in an unknown notation")
        checked_choices(choices)
    else:
        lines = text.split("\n")
        first = next((i for i in range(1, len(lines)) if re.match(r"\(?A[).:]", lines[i])), 0)
        if first and (found := _marked("\n".join(lines[first:]))):
            head, choices = "\n".join(lines[:first]), found
    head = re.sub(r"(?:^|(?<=\n)) *question *: *", "", head, count=1, flags=re.IGNORECASE)
    return _without_instructions(head.strip()), choices


def _marked(text: str) -> list[str]:
    """Options marked A, B, C ... in one notation; none where the text does not start with them."""
    text = text.strip()
    for mark in _MARKS:
        if not re.match(mark % "A", text):
            continue
        for place in _PLACES:
            spans, at = [], 0
            for letter in LETTERS:
                found = re.compile(place + mark % letter).search(text, at)
                if found is None:
                    break
                spans.append(found)
                at = found.end()
            if len(spans) > 1:
                ends = [span.start() for span in spans[1:]] + [len(text)]
                return [text[s.end() : e].strip() for s, e in zip(spans, ends, strict=True)]
    return []


def _without_instructions(text: str) -> str:
    lines = _MATHVISTA.sub("", text.strip(), count=1).split("\n")
    while len(lines) > 1 and _INSTRUCTION.fullmatch(lines[-1].strip()):
        lines.pop()
    while len(lines) > 1 and _INSTRUCTION.fullmatch(lines[0].strip()):
        lines.pop(0)
    return "\n".join(lines).strip()


def _said(reply: str) -> str:
    """The answer within a reply: what follows the last "the answer is", without its full stop."""
    said = reply.strip()
    tagged = re.findall(r"<answer>(.*?)</answer>", said, re.DOTALL)
    if tagged:
        said = tagged[-1].strip()
    else:
        said = re.split(r"\n *rationale *:", said, flags=re.IGNORECASE)[0].strip()
        parts = _SAID.split(said)
        if len(parts) > 1 and parts[-1].strip():
            said = parts[-1].strip()
    if said.endswith(".") and not _ABBREVIATION.search(said):
        said = said[:-1].rstrip()
    if not said:
        raise BadRow("no answer")
    return said


def _letter_said(said: str, choices: list[str]) -> str:
    if any(same(said, choice) for choice in choices):
        return letter_of(said, choices)  # first: an option may itself read "A"
    marked = re.fullmatch(r"(?:option )?\(?([A-Z])\)?(?:[.:)]?\s*(.*))?", said, re.DOTALL)
    index = LETTERS.index(marked[1]) if marked else len(choices)
    if (
        marked is None
        or index >= len(choices)
        or not same(marked[2] or choices[index], choices[index])
    ):
        raise BadRow("reply names none of the choices")
    return letter_at(index, choices)


# --- the three schemas -------------------------------------------------------------------------


def turn_rows(
    turns: Iterable[tuple[Any, Any]], images: list[Any], id: str
) -> Iterator[Row | BadRow]:
    """A row for each (human, reply); every one asks about the same images."""
    for number, (human, reply) in enumerate(turns):
        try:
            if not isinstance(human, str) or not isinstance(reply, str):
                raise BadRow("a turn is not text")
            question, answer, choices = parse_turn(human, reply)
            yield question_row(f"{id}/{number}", question, answer, images, choices=choices)
        except BadRow as bad:  # the other turns of the record may be good
            yield bad


def _pairs(conversation: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(conversation, list) or len(conversation) < 2:
        raise BadRow("no conversation of human and gpt")
    for human, reply in zip(conversation[::2], conversation[1::2], strict=False):
        if not isinstance(human, dict) or not isinstance(reply, dict):
            raise BadRow("a turn is not an object")
        if human.get("from") not in ("human", "user") or reply.get("from") not in (
            "gpt",
            "assistant",
        ):
            raise BadRow("turns do not alternate between human and gpt")
        yield human.get("value"), reply.get("value")


def _llava(record: Record, id: str, asked: Asked) -> Iterator[Row | BadRow]:
    image = record["image"]
    if image is None or image == "":
        raise BadRow("no image")
    if isinstance(image, str):  # MathV360K: one file for all sources, "FigureQA/images/1.png"
        prefix = image.split("/")[0]
        if asked.prefixes and "/" in image and prefix.lower() not in asked.prefixes:
            return  # another source's
        image = str(_image_root(asked.path) / image)
    yield from turn_rows(_pairs(record["conversations"]), [image], _named(record, id))


def _image_root(path: Path) -> Path:
    """Where MathV360K's images were unpacked: data_images, or images_data in older READMEs."""
    folder = path if path.is_dir() else path.parent
    for name in ("data_images", "images_data"):
        if (folder / name).is_dir():
            return folder / name
    return folder


def _named(record: Record, id: str) -> str:
    own = record.get("id")
    return str(own) if own not in (None, "") else id


def _cauldron(record: Record, id: str, asked: Asked) -> Iterator[Row | BadRow]:
    images, texts = record["images"], record["texts"]
    if not isinstance(texts, list) or not isinstance(images, list):
        raise BadRow("images and texts are not lists")
    turns = [(text["user"], text["assistant"]) for text in texts]
    yield from turn_rows(turns, images, id)


LLAVA = Table(
    "LLaVA conversations (LLaVA-OneVision-Data, MathV360K)",
    ("image", "conversations"),
    _llava,
    optional=("id",),
)
CAULDRON = Table("the_cauldron", ("images", "texts"), _cauldron)
