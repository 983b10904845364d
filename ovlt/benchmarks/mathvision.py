r"""MATH-V: 3,040 questions, 304 in testmini (MathLLMs/MathVision; arXiv 2402.14804).

Facts: mathllm/MATH-V at a1f5cc3, evaluation/evaluate.py and utils.py. Rules only: a chain of
extractions, each on the result of the one before, then equality with the letter or the option's
text, as strings or as numbers at two decimals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from ovlt.benchmarks import openvlthinker, vlmevalkit
from ovlt.benchmarks.answers import is_float
from ovlt.benchmarks.columns import lettered, option_at, options_of, text_of
from ovlt.benchmarks.items import (
    BenchmarkItem,
    BenchmarkPrompt,
    BenchmarkRow,
    BenchmarkTask,
    Rule,
    RuleRun,
    Ruling,
    Split,
    StyleName,
)
from ovlt.benchmarks.latex_value import Number, latex_value

_LETTERS = "ABCDE"
_SUBJECTS = {
    "metric geometry - area": 500, "metric geometry - length": 449,
    "metric geometry - angle": 173, "algebra": 345, "combinatorial geometry": 308,
    "solid geometry": 244, "transformation geometry": 168, "combinatorics": 168,
    "arithmetic": 140, "logic": 119, "descriptive geometry": 104, "graph theory": 90,
    "analytic geometry": 84, "counting": 67, "statistics": 58, "topology": 23,
}  # fmt: skip
_STEPS = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a '
    'multiple choice question, only one letter is allowed in the "\\boxed{}".'
)
_DIRECT = "Answer the question using a single word or phrase."


def _counts(
    choice: int, free: int, levels: tuple[int, ...], subjects: Mapping[str, int]
) -> dict[tuple[str, str], int]:
    return {
        ("", ""): choice + free,
        ("question type", "multiple choice"): choice,
        ("question type", "free form"): free,
        **{("level", str(i)): n for i, n in enumerate(levels, 1)},
        **{("subject", name): n for name, n in subjects.items()},
    }


class MathVision(BenchmarkTask):
    """MATH-V, whole or testmini."""

    name: ClassVar[str] = "mathvision"
    title: ClassVar[str] = "MathVision"
    hub: ClassVar[str] = "MathLLMs/MathVision"
    splits: ClassVar[Mapping[str, Split]] = {
        "test": Split(
            "default",
            "test",
            (("test",),),
            _counts(1532, 1508, (237, 738, 551, 830, 684), _SUBJECTS),
        ),
        "testmini": Split(
            "default",
            "testmini",
            (("testmini",),),
            _counts(190, 114, (53, 82, 56, 45, 68), dict.fromkeys(_SUBJECTS, 19)),
        ),
    }
    columns: ClassVar[tuple[str, ...]] = ("id", "question", "options", "answer", "level", "subject")
    image_columns: ClassVar[tuple[str, ...]] = ("decoded_image|image",)
    settings: ClassVar[Mapping[str, str]] = {
        "direct": "official: ask for a single word or phrase in place of steps"
    }

    def row_id(self, row: BenchmarkRow) -> str:
        return str(row["id"])

    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        question, options = text_of(item.row, "question"), options_of(item.row)
        lines = "".join(line + "\n" for line in lettered(options, "({}) {}").split("\n"))
        if style == "openvlthinker":
            text = openvlthinker.with_choices(question, options)
        elif style == "vlmevalkit":
            text = question + (f"\nChoices:\n{lines.rstrip()}" if options else "")
        else:
            shown = "" if not options or "".join(options) == _LETTERS else lines
            if "direct" in settings:
                text = f"{question}\n{shown}{_DIRECT}"
            else:
                text = f"{_STEPS}\n{question}\n{shown}"
        return BenchmarkPrompt.images_first((1,), text)

    def rules(self) -> Mapping[StyleName, Rule]:
        return {"official": official, "openvlthinker": by_tags, "vlmevalkit": by_prefetch}

    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        level, subject = text_of(row, "level"), text_of(row, "subject")
        return {
            "question type": ("multiple choice" if options_of(row) else "free form",),
            "level": (level,),
            "subject": (subject,),
            "subject and level": (f"{subject}, level {level}",),
        }


def official(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Rule as evaluate.py does: letter or option text."""
    extracted = extract(response)
    answer = text_of(row, "answer")
    option = option_at(options_of(row), answer) or ""
    right = is_equal(answer, extracted) or is_equal(option, extracted)
    return Ruling(right, extracted, "letter, option text or value at 2 decimals")
    yield  # a generator that asks nothing


_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")


def extract(response: str) -> str:
    """Return the answer of a response: the chain of section 2.3 of the reference."""
    text = response.strip()
    for name in _LETTERS:
        ends = text.endswith((f" {name}.", f" ({name})."))
        if ends or text.startswith((f"{name}\n", f"({name})\n", f"({name}) {name}\n")):
            text = name
    last = text.rpartition("is ")[2].rstrip(".")
    if is_float(last):
        text = last
    if "oxed{" not in text:
        for phrase in _PHRASES:
            for spelled in (phrase, phrase.replace("the", "The")):
                if spelled in text:
                    text = text.rpartition(spelled)[2].strip().split("\n")[0].split(". ")[0]
                else:
                    text = text.strip()
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.rpartition("oxed{")[2]
    cleaned = _cleaned(text)
    for name in "abcde":
        cleaned = cleaned.replace(f"({name})", name)
    for name in "abcde":
        cleaned = cleaned.replace(f"{{{name}}}", name)
    return cleaned.rstrip(".").lstrip(":").strip()


# In this order, on the lower-cased text.
_REMOVED = (
    (" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", ""),
    ("\\text", ""), ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("{m}^3", ""), ("m^3", ""), ("{units}", ""),
    ("units", ""), ("{km}", ""), ("km", ""),
)  # fmt: skip


def _cleaned(text: str) -> str:
    """Return the content of the box, or the whole text, lower-cased and without LaTeX's dress."""
    text = text.lower().replace("{}", "")
    box = re.search(r"oxed\{(.*)\}", text, re.DOTALL)  # greedy: to the last brace of the text
    if box:
        text = box.group(1)
    close, open_ = text.find("}"), text.find("{")
    if close >= 0 and (open_ < 0 or close < open_):
        text = text[:close]
    text = text.rpartition("=")[2].rpartition("\\approx")[2]
    for old, new in _REMOVED:
        text = text.replace(old, new)
    return _stripped(text)


def _stripped(text: str) -> str:
    """Bring fractions, roots and decimals to one spelling (the authors' ``_strip_string``)."""
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
        ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    text = text.partition("\\text{ ")[0]
    for old, new in (("\\%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    if text.count("=") == 1:
        text = text.partition("=")[2]
    if text.count("\\approx") == 1:
        text = text.partition("\\approx")[2]
    if "sqrt" in text:
        text = re.sub(r"\\sqrt(?!\\sqrt)([^{])", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    if "sqrt" in text:
        text = _with_braces(text)
    if text == "0.5":
        text = "\\frac{1}{2}"
    slash = re.fullmatch(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)", text)
    return f"\\frac{{{slash.group(1)}}}{{{slash.group(2)}}}" if slash else text


def _with_braces(text: str) -> str:
    r"""Give ``\frac12`` its braces; leave a text as it is where one has no two arguments."""
    head, *parts = text.split("\\frac")
    fixed = head
    for part in parts:
        fixed += "\\frac"
        if part[:1] == "{":
            fixed += part
        elif len(part) < 2:
            return text
        elif part[1] != "{":
            fixed += f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
        else:
            fixed += f"{{{part[0]}}}{part[1:]}"
    return fixed


def is_equal(truth: str, given: str) -> bool:
    """Equal as text, as tuples at two decimals, or as values at two decimals."""
    a, b = truth.lower(), given.lower()
    if not a.replace(" ", "") or not b.replace(" ", ""):
        return False
    if a.strip() == b.strip():
        return True
    a, b = _tuple(a), _tuple(b)
    if a == b:
        return True
    if _is_letter(a) or _is_letter(b):  # a bare letter is a symbol, and no symbol has a value
        return False
    x = _rounded(a)
    return x is not None and x == _rounded(b)


def _is_letter(text: str) -> bool:
    return len(text.strip()) == 1 and text.strip().isalpha()


def _rounded(text: str) -> Number | None:
    value = latex_value(text)
    return None if value is None else round(value, 2)


def _tuple(text: str) -> str:
    """Return "(a,b)" or "[a,b]" with each element at two decimals; any other text as it is."""
    parts = text[1:-1].split(",")
    if len(parts) < 2 or (text[:1], text[-1:]) not in (("(", ")"), ("[", "]")):
        return text
    values: list[str] = []
    for part in parts:
        if "infty" in part or part in ("a", "-a"):
            values.append(part)
        elif (value := _rounded(part)) is None:
            return text
        else:
            values.append(str(value))
    return text[0] + ",".join(values) + text[-1]


def by_tags(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style openvlthinker: the answer in tags, a letter where it is an option."""
    truth = openvlthinker.truth_of(text_of(row, "answer"), options_of(row))
    return openvlthinker.rule_for(openvlthinker.truth_in(row, truth), response)
    yield  # a generator that asks nothing


def by_prefetch(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style vlmevalkit: the option matcher, or the response itself; else the judge's extraction."""
    options, truth = options_of(row) or options_of(row, "choices"), text_of(row, "answer")
    if options:
        if named := vlmevalkit.match_option(response, options):
            right = vlmevalkit.equal_values(named, truth)
            return Ruling(right, named, "option matcher")
    elif response and vlmevalkit.equal_values(response, truth):
        return Ruling(True, response, "equal value")
    text = yield from vlmevalkit.extraction("extract")
    if text is None:
        return Ruling(None, None, "prefetch undecided, no judge", "nobody")
    given = vlmevalkit.match_option(text, options) or "False" if options else text
    return Ruling(vlmevalkit.equal_values(given, truth), text, "judge, equal value", "judge")
