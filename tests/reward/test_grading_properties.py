"""Whatever the spelling: one value is right for itself, and a changed value is wrong."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from pathlib import Path

from helpers import spellings

from ovlt.reward import expressions
from ovlt.reward.grading import grade

DRESSINGS = spellings.dressings()
PAIRS = [
    line.split("\t")
    for line in Path(__file__).with_name("pairs.tsv").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def test_pairs_are_graded_as_a_person_grades_them():
    assert len(PAIRS) > 900
    wrong = [(g, t, right) for g, t, right in PAIRS if grade(g, t)[0] != (right == "1")]
    assert wrong == []


def test_every_answer_is_right_for_itself():
    texts = {text for given, truth, _ in PAIRS for text in (given, truth) if text}
    assert [text for text in texts if not grade(text, text)[0]] == []


def test_a_pair_costs_milliseconds():
    seconds = []
    for _ in range(3):  # the first round warms the parser; the cache of parsed text is emptied
        expressions.parse.cache_clear()
        began = time.process_time()
        for given, truth, _ in PAIRS[:300]:
            grade(given, truth)
        seconds.append((time.process_time() - began) / 300)
    assert min(seconds) < 0.005


def wrong_verdicts(
    groups: list[list[str]], seed: int, pairs: int = 6
) -> list[tuple[str, str, str]]:
    """Return the pairs that are graded wrong: inside a group all are equal, between them none."""
    draw = random.Random(seed)
    wrong = []
    for at, group in enumerate(groups):
        for _ in range(pairs):
            one, other = draw.choice(DRESSINGS)(draw.choice(group)), draw.choice(group)
            for given, truth in ((one, one), (one, other), (other, one)):
                right, reason = grade(given, truth)
                if not right:
                    wrong.append((given, truth, reason))
            changed = draw.choice(groups[at - 1])
            right, reason = grade(draw.choice(DRESSINGS)(changed), other)
            if right:
                wrong.append((changed, other, "accepted"))
    return wrong


def test_a_number_is_right_in_any_spelling_and_a_changed_one_wrong():
    groups: list[list[str]] = []
    previous = Fraction(0)
    for value in spellings.rationals(seed=1, count=120):
        if value not in (previous, 100 * previous, previous / 100):
            groups.append(spellings.number_spellings(value))
        previous = value
    assert wrong_verdicts(groups, seed=2) == []


def test_a_neighbour_of_a_number_is_wrong():
    for value in spellings.rationals(seed=3, count=60):
        for change in (Fraction(1), Fraction(1, 10), Fraction(1, 1000), -2 * value):
            truth, given = (
                random.Random(4).choice(spellings.number_spellings(v))
                for v in (value, value + change)
            )
            if value + change in (0, value * 100, value / 100):
                continue
            assert not grade(given, truth)[0], (given, truth)


def test_expressions_are_right_in_any_form():
    draw = random.Random(5)
    surds = []
    for _ in range(20):
        a, b, c, d = (draw.randint(2, 9), draw.randint(2, 7), draw.choice([2, 3, 5, 6, 7, 11]), 0)
        d = draw.choice([n for n in range(3, 12) if n != a])
        surds.append(spellings.surd_spellings(a, b, c, d))
    polynomials = [spellings.polynomial_spellings(a, 3 * a + 1) for a in range(2, 9)]
    assert wrong_verdicts(surds, seed=6, pairs=4) == []
    assert wrong_verdicts(polynomials, seed=7, pairs=4) == []


def test_a_unit_is_equal_in_any_spelling_or_left_out_and_another_one_is_wrong():
    draw = random.Random(8)
    wrong = []
    for value in ("5", "2.5", r"\frac{3}{4}", "1 1/2", "1,200"):
        for at, names in enumerate(spellings.UNITS):
            for name in names:
                given = spellings.with_unit(value, name)
                truth = spellings.with_unit(value, draw.choice(names))
                wrong += [(given, t) for t in (truth, value) if not grade(given, t)[0]]
                wrong += [(value, given)] * (not grade(value, given)[0])
                other = spellings.with_unit(value, draw.choice(spellings.UNITS[at - 1]))
                changed = spellings.with_unit("7", name)
                wrong += [(t, truth) for t in (other, changed) if grade(t, truth)[0]]
    assert wrong == []


def test_an_option_is_right_however_it_is_stated_and_another_one_wrong():
    wrong = []
    for letter, other, text in (("C", "B", "5 cm"), ("A", "D", "longer side"), ("D", "A", "12")):
        for given in spellings.option_spellings(letter, text):
            for truth, expected in ((letter, True), (f"({letter})", True), (other, False)):
                if grade(given, truth)[0] != expected:
                    wrong.append((given, truth))
    assert wrong == []


def test_lists_sets_points_and_intervals_keep_their_structure():
    draw = random.Random(9)
    wrong = []
    for _ in range(40):
        a, b, c = draw.sample(range(-9, 30), 3)
        free = [f"{a}, {b}", f"{b}, {a}", f"{a} and {b}", f"x = {a} or x = {b}", f"{a}; {b}"]
        free += [rf"\{{{b},{a}\}}", rf"x={a} \text{{ or }} x={b}", f"{{{a}, {b}}}", f"{a}、{b}"]
        point = [f"({a}, {b})", f"({a},{b})", rf"\left({a},{b}\right)", f"P({a}, {b})"]
        closed = [f"[{a}, {b}]", rf"\left[ {a},{b} \right]", rf"x \in [{a},{b}]"]
        half = [f"[{a}, {b})", rf"\left[{a}, {b}\right)"]
        forms = [free, point, closed, half]
        for at, group in enumerate(forms):
            one, other = draw.choice(group), draw.choice(group)
            wrong += [(one, other)] * (not grade(one, other)[0])
            foreign = draw.choice(forms[at - 1])
            wrong += [(foreign, other, "accepted")] * grade(foreign, other)[0]
            changed = one.replace(str(b), str(c))
            wrong += [(changed, other, "accepted")] * (changed != one and grade(changed, other)[0])
        swapped = f"({b}, {a})"
        wrong += [(swapped, point[0], "accepted")] * grade(swapped, point[0])[0]
    assert wrong == []


def test_no_two_digits_meet_that_were_apart():
    draw = random.Random(10)
    for _ in range(80):
        a, b, c = draw.randint(1, 99), draw.randint(1, 99), draw.randint(2, 99)
        for apart, joined in (
            (f"{a} {b}", f"{a}{b}"),
            (f"{a} {b}/{c}", f"{a}{b}/{c}"),
            (f"{a},{b}", f"{a}{b}"),
            (f"{a}.{b}1", f"{a}{b}1"),
            (f"{a}/{b}", f"{a}{b}"),
            (f"{a}^{b}", f"{a}{b}"),
            (rf"{a}\frac{{{b}}}{{{c}}}", rf"\frac{{{a}{b}}}{{{c}}}"),
        ):
            for given, truth in ((apart, joined), (joined, apart)):
                assert not grade(given, truth)[0], (given, truth)
