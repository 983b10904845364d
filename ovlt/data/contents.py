"""What a row says, from whatever columns it has: turns, answer, images, and what is left over."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ovlt.data.columns import CONVERSATIONS, Columns
from ovlt.data.image_refs import ImageRef
from ovlt.data.row_table import BadRow
from ovlt.data.turns import Turn, part_text, read_dialogue
from ovlt.model.chat import IMAGE_TAG

QUESTIONS = ("problem", "question", "query", "prompt")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LETTER = re.compile(r"\(?[A-Za-z]\)?\.?")
# Where the two sides of a single exchange stand if there is no conversation (TRL, Alpaca, ...).
_ASKED = ("prompt", "instruction", "question", "query", "problem")
_REPLIES = ("completion", "response", "output")


@dataclass(frozen=True)
class Content:
    """A row, understood."""

    turns: tuple[Turn, ...]  # of a question: system and earlier turns, and the question last
    images: tuple[ImageRef, ...] = ()
    answer: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)  # columns that ovlt does not read


def question_content(raw: Mapping[str, object], base: Path, ignore: Collection[str]) -> Content:
    """Read a row of questions. Raises BadRow and BadImage.

    The question is ``problem`` (or question, query, prompt, or a conversation): a text, a list of
    parts, or turns that end with the user's. The answer is ``answer`` (or ground_truth, or a
    solution in tags).
    """
    columns = Columns(raw, ignore)
    columns.drop("id", "kind", "source")
    turns, inner = _question_turns(columns, base)
    answer = _answer(columns)
    if not columns.has("source"):
        columns.drop("data_source")  # which is verl's name of it
    turns = _with_system(columns, turns)
    images = _one_place(inner, columns.images(base))
    columns.refuse_meant(len(images), (*CONVERSATIONS, "history", "suffix", "prefix"))
    _check_choices(columns, answer, turns[-1].text)
    return Content(tuple(turns), images, answer, columns.extra())


def _question_turns(columns: Columns, base: Path) -> tuple[list[Turn], list[ImageRef]]:
    name = "problem" if columns.has("problem") else ""
    name = name or columns.one_of(QUESTIONS[1:], "a question")
    name = name or columns.one_of(CONVERSATIONS, "a conversation")
    if not name:
        raise BadRow("no 'problem' text", columns.listing)
    value = columns.take(name)
    spells_turns = isinstance(value, str) and name == "prompt" and value.lstrip().startswith("[{")
    holds_turns = isinstance(value, list) and any(
        isinstance(item, dict) and {"role", "from"} & item.keys() for item in value
    )
    if holds_turns or spells_turns or name in CONVERSATIONS:
        dialogue = read_dialogue(value, base)
        if dialogue is not None and dialogue.turns[-1].role != "user":
            raise BadRow(
                f"the last turn of '{name}' is not the user's: a question ends with what is asked, "
                "and its answer is in 'answer'"
            )
        if dialogue is not None:
            return dialogue.turns, dialogue.images
    inner: list[ImageRef] = []
    if isinstance(value, list):
        value = part_text(value, base, inner)
    if not isinstance(value, str) or not value.strip():
        raise BadRow("no 'problem' text", columns.listing)
    return [Turn("user", value)], inner


def _answer(columns: Columns) -> str:
    if columns.has("answer"):
        value = columns.take("answer")
    elif columns.has("ground_truth"):
        value = columns.take("ground_truth")
    elif isinstance(model := columns.peek("reward_model"), dict):  # verl's
        columns.drop("reward_model", "answer")
        value = model.get("ground_truth")
    elif columns.has("solution"):  # R1-V's
        solution = columns.take("solution")
        tagged = _TAGGED.search(solution) if isinstance(solution, str) else None
        if tagged is None:
            raise BadRow("no 'answer', and 'solution' has no <answer> tags", columns.listing)
        value = tagged[1]
    else:
        value = columns.peek("answer")
        columns.drop("answer")
    if not isinstance(value, str) or not value.strip():
        raise BadRow("'answer' is not a non-empty string", columns.listing)
    return value.strip()


def _check_choices(columns: Columns, answer: str, question: str) -> None:
    """Raise BadRow if the answer is the letter of a choice that the question does not show."""
    for name in ("choices", "options"):
        choices = columns.peek(name)
        if not isinstance(choices, list) or not choices or not _LETTER.fullmatch(answer):
            continue
        shown = " ".join(question.split()).casefold()
        texts = [" ".join(str(choice).split()).casefold() for choice in choices]
        if answer.casefold() not in texts and not all(text in shown for text in texts):
            raise BadRow(
                f"'{name}' are not in the text of the question, and the answer is a letter"
            )


def conversation_content(raw: Mapping[str, object], base: Path, ignore: Collection[str]) -> Content:
    """Read a row of conversations. Raises BadRow and BadImage.

    The conversation is in ``messages`` (or conversations, ...), or a single exchange in two columns
    (prompt and completion, instruction and output, ...).
    """
    columns = Columns(raw, ignore)
    columns.drop("id", "kind", "source")
    name = columns.one_of(CONVERSATIONS, "a conversation")
    if name:
        dialogue = read_dialogue(columns.peek(name), base)
        if dialogue is None:
            raise BadRow("no 'messages' list", columns.listing)
        turns, inner = dialogue
        _refuse_another_text(columns, turns)
    else:
        turns, inner = _exchange(columns, base)
    turns = _with_system(columns, turns)
    images = _one_place(inner, columns.images(base))
    columns.refuse_meant(len(images), _NOT_FOR_SFT)
    return Content(tuple(turns), images)


_NOT_FOR_SFT = (
    "rejected", "chosen", "loss_mask", "labels", "label_mask", "assistant_masks",
    "attention_mask", "input_ids", "history",
)  # fmt: skip


def _exchange(columns: Columns, base: Path) -> tuple[list[Turn], list[ImageRef]]:
    reply = columns.one_of(_REPLIES, "a reply")
    asked = next((name for name in _ASKED if columns.has(name)), "")
    if not reply or not asked:
        raise BadRow("no 'messages' list", columns.listing)
    inner: list[ImageRef] = []
    turns: list[Turn] = []
    history = read_dialogue(columns.take("history"), base)  # Alpaca's: pairs of earlier turns
    for name, role in ((asked, "user"), (reply, "assistant")):
        value = columns.take(name)
        if isinstance(value, list) and any(isinstance(v, dict) and "role" in v for v in value):
            dialogue = read_dialogue(value, base)  # TRL's: both sides may be lists of messages
            assert dialogue is not None
            turns += dialogue.turns
            inner += dialogue.images
            continue
        text = part_text(value, base, inner)
        if name == "instruction" and (more := columns.take("input")):
            text = f"{text}\n{_text(more)}"
        turns.append(Turn(role, text))
    if history is not None:
        if inner or history.images:
            raise BadRow("images within 'history' are not read")
        turns = [*history.turns, *turns]
    return turns, inner


def _refuse_another_text(columns: Columns, turns: list[Turn]) -> None:
    """Raise BadRow for a text beside the conversation that is no part of it."""
    for name in (*_ASKED, *_REPLIES, "input"):
        value = columns.peek(name)
        if columns.has(name) and not _is_part(value, turns):
            raise BadRow(
                f"column '{name}' stands beside the conversation: leave it out (data.ignore)"
            )


def _is_part(value: object, turns: list[Turn]) -> bool:
    if not isinstance(value, str):
        return False
    text = value.replace(IMAGE_TAG, "").strip()
    return any(text in turn.text for turn in turns)


def _with_system(columns: Columns, turns: list[Turn]) -> list[Turn]:
    """Put the system prompt of a column in front. Raises BadRow if there is another already."""
    text = columns.system()
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].text.strip() != text.strip():
            raise BadRow("two system prompts: a column and the first turn")
        return turns
    return [Turn("system", text), *turns]


def _one_place(inner: list[ImageRef], column: tuple[ImageRef, ...]) -> tuple[ImageRef, ...]:
    if inner and column:
        raise BadRow("images both within the turns and in a column: leave one out (data.ignore)")
    return tuple(inner) or column


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
