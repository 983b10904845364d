"""Questions in chat turns, the form of LLaVA-OneVision, MathV360K and the_cauldron.

A human turn holds an instruction ("Hint: Please answer ...", "Answer with the letter."), the
question, and perhaps its options in one of several notations; the reply holds the answer in a
sentence. Both are taken apart here. A reply that is prose, or that names none of the options, has
no verifiable answer and makes a BadRow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ovlt.data.readers.layouts import SourcePart, TableLayout
from ovlt.data.readers.rows import (
    LETTERS,
    QuestionRow,
    Record,
    checked_choices,
    letter_at,
    letter_of,
    plain,
    question_row,
    same,
)
from ovlt.data.tables import BadRow

# A longer reply is prose. The longest real answers, MapQA's lists of regions, stay below it.
MAX_ANSWER_WORDS = 12

# Instructions are lines of their own, at the start or the end.
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
_BLOCK = re.compile(  # on a line of its own, or within one if its first option follows
    r"(?:^|\n) *(?:choices|options) *: *|\s(?:choices|options) *: *(?=\(?A[).:])", re.IGNORECASE
)
_MARKS = (r"\(%s\)", r"%s\.", r"%s:", r"%s\)")  # "(A) x", "A. x", "A: x", "A) x"
_PLACES = (r"(?:^|\n)[ \t]*", r"(?:^|\s)")  # each option on a line of its own, or all on one
_ANSWER_IS = re.compile(
    r"(?:\bthe (?:final |correct )?(?:answer|option) is\b *:?|\banswer *:)", re.IGNORECASE
)
_ABBREVIATION = re.compile(r"(?:\b\w\.){2,}$", re.UNICODE)  # "2:10 P.M." keeps its last dot


def parse_turn(human: str, reply: str) -> tuple[str, str, list[str]]:
    """Return (question, answer, options) of a turn and its reply. Raises BadRow.

    With options, the answer is the letter of the right one.
    """
    question, choices = split_choices(_without_instructions(plain(human)))
    answer = _answer_in(reply)
    if not choices:
        if len(answer.split()) > MAX_ANSWER_WORDS:
            raise BadRow("reply is prose, not an answer")
        return question, answer, []
    return question, _letter_for(answer, choices), choices


def bare_question(text: str) -> str:
    """Return the question alone, without image tags, instructions and options."""
    text = _without_instructions(plain(text))
    try:
        return split_choices(text)[0]
    except BadRow:
        return text


def split_choices(text: str) -> tuple[str, list[str]]:
    """Return a question and the options below it, without its label ("Question:").

    Raises BadRow if the options are in an unknown notation.
    """
    head, choices = text, []
    blocks = list(_BLOCK.finditer(text))
    if blocks:
        block = blocks[-1]  # the last: the question itself may speak of choices
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
        if first and (options := _marked("\n".join(lines[first:]))):
            head, choices = "\n".join(lines[:first]), options
    head = re.sub(r"(?:^|(?<=\n)) *question *: *", "", head, count=1, flags=re.IGNORECASE)
    return _without_instructions(head.strip()), choices


def _marked(text: str) -> list[str]:
    """Return options marked A, B, C ... in one notation; none if the text does not start so."""
    text = text.strip()
    for mark in _MARKS:
        if not re.match(mark % "A", text):
            continue
        for place in _PLACES:
            spans, at = [], 0
            for letter in LETTERS:
                span = re.compile(place + mark % letter).search(text, at)
                if span is None:
                    break
                spans.append(span)
                at = span.end()
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


def _answer_in(reply: str) -> str:
    """Return what follows the last "the answer is" of a reply, without its full stop."""
    answer = reply.strip()
    tagged = re.findall(r"<answer>(.*?)</answer>", answer, re.DOTALL)
    if tagged:
        answer = tagged[-1].strip()
    else:
        answer = re.split(r"\n *rationale *:", answer, flags=re.IGNORECASE)[0].strip()
        parts = _ANSWER_IS.split(answer)
        if len(parts) > 1 and parts[-1].strip():
            answer = parts[-1].strip()
    if answer.endswith(".") and not _ABBREVIATION.search(answer):
        answer = answer[:-1].rstrip()
    if not answer:
        raise BadRow("no answer")
    return answer


def _letter_for(answer: str, choices: list[str]) -> str:
    """Return the letter that a reply names, by itself or by its option's text. Raises BadRow."""
    if any(same(answer, choice) for choice in choices):
        return letter_of(answer, choices)  # first: an option may itself read "A"
    marked = re.fullmatch(r"(?:option )?\(?([A-Z])\)?(?:[.:)]?\s*(.*))?", answer, re.DOTALL)
    index = LETTERS.index(marked[1]) if marked else len(choices)
    if (
        marked is None
        or index >= len(choices)
        or not same(marked[2] or choices[index], choices[index])
    ):
        raise BadRow("reply names none of the choices")
    return letter_at(index, choices)


def turn_rows(
    turns: Iterable[tuple[object, object]], images: list[object], id: str
) -> Iterator[QuestionRow | BadRow]:
    """Yield a row for each (human, reply); all of them ask about the same images."""
    for number, (human, reply) in enumerate(turns):
        try:
            if not isinstance(human, str) or not isinstance(reply, str):
                raise BadRow("a turn is not text")
            question, answer, choices = parse_turn(human, reply)
            yield question_row(f"{id}/{number}", question, answer, images, choices=choices)
        except BadRow as bad:  # the other turns of the record may be good
            yield bad


def _pairs(conversation: object) -> Iterator[tuple[object, object]]:
    """Yield (human, reply) of a LLaVA conversation. Raises BadRow."""
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


def _llava(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow | BadRow]:
    image = record["image"]
    if image is None or image == "":
        raise BadRow("no image")
    if isinstance(image, str):  # MathV360K: one file for all sources, "FigureQA/images/1.png"
        prefix = image.split("/")[0]
        if part.prefixes and "/" in image and prefix.lower() not in part.prefixes:
            return  # the row belongs to another source
        image = str(_image_root(part.path) / image)
    yield from turn_rows(_pairs(record["conversations"]), [image], _id_of(record, id))


def _image_root(path: Path) -> Path:
    """Return the folder of MathV360K's images: data_images, or images_data in older READMEs."""
    folder = path if path.is_dir() else path.parent
    for name in ("data_images", "images_data"):
        if (folder / name).is_dir():
            return folder / name
    return folder


def _id_of(record: Record, default: str) -> str:
    id = record.get("id")
    return str(id) if id not in (None, "") else default


def _cauldron(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow | BadRow]:
    images, texts = record["images"], record["texts"]
    if not isinstance(texts, list) or not isinstance(images, list):
        raise BadRow("images and texts are not lists")
    turns = [(text["user"], text["assistant"]) for text in texts]
    yield from turn_rows(turns, images, id)


LLAVA = TableLayout(
    "LLaVA conversations (LLaVA-OneVision-Data, MathV360K)",
    ("image", "conversations"),
    _llava,
    optional=("id",),
)
CAULDRON = TableLayout("the_cauldron", ("images", "texts"), _cauldron)
