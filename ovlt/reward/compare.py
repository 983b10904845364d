"""Compare an answer and its ground truth by what they are: words, quantities, equations, lists."""

from __future__ import annotations

import re

from ovlt.reward import choices
from ovlt.reward.clock import compare_clock
from ovlt.reward.lists import Elements, elements, is_equation, split_name
from ovlt.reward.mathematics import Verdict, compare_relations
from ovlt.reward.mathematics import compare as compare_mathematics
from ovlt.reward.numbers import number
from ovlt.reward.quantities import compare_quantities, compare_ranges, read_quantity


def compare(given: str, truth: str, depth: int) -> Verdict:
    """Compare two tidy texts by what they are."""
    if given == truth:
        return True, "equal text"
    if labelled := _compare_labelled(given, truth):
        return labelled
    if verdict := _compare_words(given, truth):
        return verdict
    unnamed = split_name(given).values[-1], split_name(truth).values[-1]
    if verdict := compare_clock(*unnamed) or compare_ranges(*unnamed):
        return verdict
    quantities = read_quantity(given), read_quantity(truth)
    if quantities[0].value is not None and quantities[1].value is not None:
        return compare_quantities(*quantities)
    if is_equation(given) or is_equation(truth):
        return _compare_equations(given, truth, depth)
    return _compare_named(given, truth, depth)


_LABELLED = re.compile(r"\(?([A-H])[).:]\s+(\S.*)|\(([A-H])\)\s*(\S.*)", re.DOTALL)


def _compare_labelled(given: str, truth: str) -> Verdict | None:
    """Compare with a ground truth such as "(C) 5 cm": its letter or its text is right."""
    match = _LABELLED.fullmatch(truth)
    if match is None:
        return None
    label, text = match.group(1) or match.group(3), match.group(2) or match.group(4)
    whole = _LABELLED.fullmatch(given)
    if whole:
        same = label == (whole.group(1) or whole.group(3))
        return same and compare(whole.group(2) or whole.group(4), text, 1)[0], "option"
    if choices.option_of(given):
        return choices.option_label(given) == label, "option"
    return compare(given, text, 1)


_WORD = re.compile(r"[^\W\d_]+(?:(?:[ ']|(?<=\w\w)-(?=\w\w))[^\W\d_]+)*")
_FUNCTION = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)\b")
_RUN = re.compile(r"[^\W\d_]+")
_NO_WORDS = {"infinity", "sqrt", "pi", "inf"}


def _compare_words(given: str, truth: str) -> Verdict | None:
    """Compare texts of words, whatever their case; None unless one side is made of words."""
    wordy = [_is_wordy(text) for text in (given, truth)]
    if _fold(given) == _fold(truth):
        return True, "words"
    if elements(given) and elements(truth):
        return None
    if all(wordy) and (number(given) is None or number(truth) is None):
        return False, "words"
    for text, is_word in zip((given, truth), wordy, strict=True):
        # three letters that cannot be read as algebra or a number
        letters = set(text.casefold()) - {" "}
        if (
            is_word
            and len(letters) > 2
            and text.casefold() not in _NO_WORDS
            and number(text) is None
        ):
            return None if read_quantity(text).unit else (False, "words")
    return None


def _is_wordy(text: str) -> bool:
    return _WORD.fullmatch(text) is not None and _FUNCTION.search(text) is None


def _fold(text: str) -> str:
    """Return a text without the case of its words; letters that may be symbols keep theirs."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}|\s*(\\[A-Za-z]+)\s*", r" \1\2 ", text)
    text = re.sub(r"(?<=[A-Za-z])_\{?(\d+)\}?", r"\1", text)  # H_2O
    text = re.sub(r"\s*([|=<>])\s*", r"\1", text)
    text = " ".join(text.split())
    text = re.sub(r"(?<=[^\W\d_])[.,!]+$", "", text)
    text = re.sub(r"^(?:the|an?)\s+(?=[^\W\d_]{2})", "", text, flags=re.IGNORECASE)
    only_words = _WORD.fullmatch(text) is not None
    return _RUN.sub(
        lambda run: run.group().casefold() if only_words or len(run.group()) > 2 else run.group(),
        text,
    )


_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\(?:lor|vee)")


def _compare_equations(given: str, truth: str, depth: int) -> Verdict:
    given, truth = (_IN.sub("", text) for text in (given, truth))
    if _same_sides(given, truth):
        return True, "equal sides"
    lists = elements(given), elements(truth)
    if lists[0] and lists[1] and not (lists[0].ordered or lists[1].ordered) and depth < 3:
        return _compare_lists(lists[0], lists[1], depth)
    for text, other in ((given, truth), (truth, given)):
        # "2 + 3 = 5" states 5
        sides = re.split(r"(?<![<>!:])=", text)
        values = [number(side) for side in sides]
        if len(sides) > 1 and values[0] is not None and values.count(values[0]) == len(values):
            return (
                compare(sides[-1].strip(), other, depth + 1) if depth < 2 else (False, "equation")
            )
    for listed, text, other in zip(lists, (given, truth), (truth, given), strict=True):
        if listed and not listed.brackets and all(map(is_equation, listed.items)):
            return compare_relations(listed.items, other, is_or=_OR.search(text) is not None)
    return compare_mathematics(given, truth)


# "x \\in [1, 2]"
_IN = re.compile(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*")


def _same_sides(given: str, truth: str) -> bool:
    """Return whether two equations of names have the same sides: "∠1 = ∠2", "∠2 = ∠1"."""
    sides = [sorted(map(_fold, re.split(r"(?<![<>!:])=", text))) for text in (given, truth)]
    return sides[0] == sides[1] and len(sides[0]) == 2


def _compare_named(given: str, truth: str, depth: int) -> Verdict:
    """Compare values that may have names, and lists of such: "x = 5", "y = 2x + 1", "A(3, 4)"."""
    pair = _list_of_named(given), _list_of_named(truth)
    if pair == (None, None):
        name, forms = split_name(given)
        true_name, true_forms = split_name(truth)
        if name and true_name and _are_other_symbols(name, true_name):
            if _same_sides(given, truth):
                return True, "equal sides"
            if "=" in given and "=" in truth:
                verdict = compare_mathematics(given, truth)  # x = y + 1 is y = x - 1
                return verdict if verdict[0] else (False, "another variable")
            return False, "another variable"
        verdict = False, "differs"
        for one in forms if name else [given]:
            for other in true_forms if true_name else [truth]:
                verdict = _compare_values(one, other, depth)
                if verdict[0]:
                    return verdict
        return verdict
    lists = [
        listed or _with_signs(split_name(text).values[0])
        for listed, text in zip(pair, (given, truth), strict=True)
    ]
    if lists[0] is None or lists[1] is None:
        return False, "one value against several"
    return _compare_lists(lists[0], lists[1], depth)


def _are_other_symbols(name: str, other: str) -> bool:
    """Return whether two names are different symbols; words such as "Area" may differ freely."""
    if name == other or ("y" in (name, other) and "(" in name + other):  # y = f(x)
        return False
    return all(len(re.sub(r"\\[A-Za-z]+|\W", "", text)) <= 3 for text in (name, other))


def _list_of_named(text: str) -> Elements | None:
    """Return the elements of "x = 1 or x = 2", "x = 1, y = 2"; None unless two have names."""
    listed = elements(text)
    if listed is None or sum(bool(split_name(item).name) for item in listed.items) < 2:
        return None
    return listed


def _compare_values(given: str, truth: str, depth: int) -> Verdict:
    lists = _with_signs(given), _with_signs(truth)
    if depth < 3 and lists != (None, None):
        for one, other in (lists, lists[::-1]):
            if (
                one is None
                and other is not None
                and other.brackets == "{}"
                and len(other.items) == 1
            ):
                text = given if one is lists[0] else truth
                return compare(text, other.items[0], depth + 1)
        if lists[0] is None or lists[1] is None:
            if re.search(r"\\(?:cup|cap|setminus|begin|mathbb|emptyset)", given + truth):
                return compare_mathematics(given, truth)
            return False, "one value against several"
        return _compare_lists(lists[0], lists[1], depth)
    quantities = read_quantity(given), read_quantity(truth)
    return compare_quantities(*quantities)


def _with_signs(text: str) -> Elements | None:
    """Return the elements of a list; "\\pm 3" has two."""
    listed = elements(text)
    items = [text] if listed is None else listed.items
    if r"\pm" not in text:
        items = [item.replace(r"\mp", r"\pm") for item in items]
    if not any(r"\pm" in item for item in items):
        return listed
    both: list[str] = []
    for item in items:
        if item.count(r"\pm") != 1 or r"\mp" in item:
            both.append(item)
        else:
            both += [re.sub(r"\\pm\s*", sign, item) for sign in ("+", "-")]
    return Elements(listed.brackets if listed else "", both)


_MAX_UNORDERED = 8  # every pair may cost a call of Math-Verify


def _compare_lists(given: Elements, truth: Elements, depth: int) -> Verdict:
    """Compare element by element; in any order unless brackets or names give one."""
    ordered = given.ordered or truth.ordered
    one_is_named = [_names(listed) for listed in (given, truth)]
    if (one_is_named[0] is None) != (one_is_named[1] is None):
        ordered = True  # "x = 1, y = 2" says which is which
        if {given.brackets, truth.brackets} - {"", "()"}:
            return False, "other brackets"
    elif ordered and given.brackets != truth.brackets:
        return False, "other brackets"
    if len(given.items) != len(truth.items):
        return False, "other number of values"
    if ordered or len(truth.items) > _MAX_UNORDERED:
        pairs = zip(given.items, truth.items, strict=True)
        return all(compare(one, other, depth + 1)[0] for one, other in pairs), "in order"
    rest = list(truth.items)
    for item in given.items:
        match = next((other for other in rest if compare(item, other, depth + 1)[0]), None)
        if match is None:
            return False, "unordered"
        rest.remove(match)
    return True, "unordered"


def _names(listed: Elements) -> list[str] | None:
    """Return the names of the elements if each has another one, else None."""
    names = [split_name(item).name for item in listed.items]
    return names if all(names) and len(set(names)) == len(names) > 1 else None
