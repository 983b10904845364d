"""Verdicts on the pairs that MathRuler gets right and wrong, and on text that would hang it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ovlt.reward.grading import extract_answer, grade

ROOT = Path(__file__).resolve().parents[2]

# given, truth, a human's verdict, MathRuler's verdict
PAIRS = [
    ("0.5", "1/2", True, True),
    (r"\frac{3}{4}", "0.75", True, True),
    ("2/4", "1/2", True, False),
    (r"\dfrac{7}{3}", "7/3", True, True),
    (r"2\frac{1}{3}", "7/3", True, True),
    ("2 1/3", "7/3", True, True),
    ("-2 1/2", "-2.5", True, False),
    ("0.33", "1/3", False, False),
    ("8.50", "8.5", True, True),
    ("8.49", "8.5", False, False),
    ("50%", "50", True, True),
    ("50%", "0.5", True, False),
    ("5%", "0.5", False, False),
    (r"12.5\%", "12.5", True, True),
    ("21 cm", "21", True, True),
    ("21 cm", "21 cm", True, True),
    ("5 meters", "5 centimeters", False, True),
    ("3 inches", "3 feet", False, True),
    ("15 minutes", "15 hours", False, True),
    ("5 m", "5", True, False),
    ("5 m", "5 meters", True, False),
    ("5 square meters", "5 m", False, False),
    (r"12\text{ cm}^2", "12", True, True),
    (r"12\pi cm^2", r"12\pi", True, True),
    (r"90^\circ", "90", True, True),
    ("90°", "90", True, False),
    ("118°T", "118", True, False),
    ("90 degrees", "90", True, True),
    ("27°C", "27°F", False, False),
    ("[0, 1)", "[0,1)", True, True),
    ("(0,1)", "[0,1]", False, False),
    ("(1,2)", "(2,1)", False, False),
    ("2, 1", "1, 2", True, False),
    (r"\{2,1\}", r"\{1,2\}", True, False),
    ("1, 1", "1, 2", False, False),
    ("1 and 2", "1, 2", True, True),
    ("x = 1 or x = 2", "1, 2", True, False),
    ("[2016, 2014]", "[2014, 2016]", False, False),
    ("(1,234)", "1234", False, True),
    ("(A)", "A", True, True),
    ("A. 5", "A", True, False),
    ("B: the red line", "B", True, False),
    ("b", "B", True, True),
    ("C.", "C", True, False),
    ("C)", "C", True, False),
    ("(C) 5", "C", True, False),
    ("**C**", "C", True, False),
    ("Option C", "C", True, False),
    ("The answer is (C).", "C", True, False),
    ("C. A red line", "C", True, False),
    ("C", "(C)", True, True),
    ("C", "D", False, False),
    ("A, B", "A", False, False),
    ("A or B", "A", False, False),
    ("A) 5 or B) 6", "A", False, False),
    ("A dog", "A", False, False),
    ("BA", "AB", False, True),
    ("on", "no", False, True),
    ("2010-2011", "2011-2012", False, True),
    ("2010 \u2013 2011", "2010-2011", True, False),
    ("3-5", "5-7", False, True),
    ("3%-5%", "5-7", False, True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True, True),
    ("2sqrt(3)", "sqrt(12)", True, True),
    ("√2", r"\sqrt{2}", True, False),
    ("3π", r"3\pi", True, False),
    ("\u22125", "-5", True, False),
    ("1,234,567", "1234567", True, True),
    ("$4,656", "4656", True, True),
    (r"1.5 \times 10^3", "1500", True, False),
    ("1.5e3", "1500", True, True),
    ("5 million", "5000000", True, False),
    ("10^2", "100", True, False),
    ("2^{10}", "1024", True, False),
    ("Yes, it is", "yes", True, False),
    ("Yes.", "yes", True, False),
    ("No. There is none", "no", True, False),
    ("yes or no", "yes", False, False),
    ("No idea", "no", False, False),
    ("x = 5", "5", True, True),
    ("AB = 5", "5", True, False),
    ("x = 5", "y = 5", False, True),
    ("g(x)=-x^2", "-x^2", True, False),
    (r"Volume $=127.2 \mathrm{~cm}^{3}$", "127.2", True, False),
    ("(x+1)^2", "x^2+2x+1", True, True),
    ("x+y", "y+x", True, True),
    ("second", "hour", False, True),
    ("meters", "meter", False, True),
    ("Monday", "mon", False, True),
    ("parameter", "para", False, True),
    ("2 weeks and 3 days", "2 months and 3 years", False, True),
    ("three", "3", True, False),
    ("1:2", "1/2", False, False),
    ("12:30", "12:30", True, True),
    ("12:30", "12:31", False, False),
    ("9:30 a.m.", "09:30 am", True, False),
    (r"(-\infty, 2)", "(-inf,2)", True, True),
    (r"\text{no}", "No", True, True),
    (r"$\boxed{\frac{3}{4}}$", "3/4", True, True),
    ("3.00000001", "3", False, True),
    ("123456789012345678", "123456789012345679", False, True),
    ("nan", "nan", False, True),
    ("", "5", False, False),
    ("", "", False, True),
    ("\uff13", "3", True, True),
    ("5 apples", "5", False, False),
    ("x)&(0", "x+1", False, False),  # an injection: MathRuler itself says True
]


@pytest.mark.parametrize(("given", "truth", "human", "mathruler"), PAIRS)
def test_verdict_is_the_human_one_and_parity_is_mathrulers(given, truth, human, mathruler):
    verdict, reason = grade(given, truth)
    assert (verdict, bool(reason)) == (human, True), reason
    verdict, reason = grade(given, truth, parity=True)
    assert verdict == mathruler, reason


HANGS = [
    "9**9**9",
    "((((((((9^9)^9)^9)^9)^9)^9)^9)^9)",
    "99999999!",
    r"99999999\\!",
    "((9!)!)!",
    "2**99999999",
    "1e999999999",
    "1 e{999999999}",
    "1e9_9_9_9_9_9_9_9_9",
    "(x+1)**9999",
    "(x+1)**99999-(x+2)**99999",
    "((((x+1)^9+1)^9+1)^9+1)^9",
    "((x+y)^9+1)^9",
    "7^-999999999",
    "2^-9^9",
    "9^9e9",
    "1<<99999999999",
    "'0'*99999999999",
    "[0]*99999999999",
    "ff(9999999,999999)",
    "eye(99999)",
    "(eye)(99999)",
    "sqrt(" * 50 + "2" + ")" * 50,
    "(" * 10000 + "1" + ")" * 10000,
    "(" * 199 + "1" + ")" * 199,
    "9" * 100_000,
    "a" * 500,
    "ab" * 50_000,
    "x+" * 60 + "x",
    "(" + "1.5," * 25_000 + "1)",
    "{" * 500,
    "\\" * 500,
    r"\frac" * 100,
    "5" + "!" * 100_000,
    "(x+1)^9(x+2)^9(x+3)^9(x+4)^9(x+5)^9",
    "+".join(f"1/(x+{n}y)" for n in range(1, 40)),
]


@pytest.mark.parametrize("parity", [False, True])
def test_explosive_text_is_wrong_at_once(parity):
    # In a child, since a hang inside a big-integer operation answers to no signal but SIGKILL.
    code = (
        f"from ovlt.reward.grading import grade\nhangs = {HANGS!r}\n"
        f"print([h[:40] for h in hangs for t in ('0.3', 'x+1') if grade(h, t, parity={parity})[0]])"
    )
    child = subprocess.run(
        [sys.executable, "-"],
        input=code,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )
    assert child.stdout.strip() == "[]", child.stderr[-2000:]
    assert child.stderr == ""


@pytest.mark.parametrize("parity", [False, True])
def test_nothing_raises(parity):
    odd = [
        None,
        5,
        0.5,
        True,
        [],
        {},
        b"5",
        "\x00",
        "5\ud800",
        "\ud800",
        "\\",
        "$",
        "(",
        ")",
        "[],",
    ]
    odd += ["1/0", "0^{-1}", r"\frac{1}{0}", "{}", ",,", "\u0661/\u0662", "x" * 513, "=", "%", "°"]
    for given in odd:
        for truth in [*odd, "3"]:
            verdict, reason = grade(given, truth, parity=parity)
            assert isinstance(verdict, bool)
            assert reason
            if not isinstance(given, str) or not isinstance(truth, str):
                assert (verdict, reason) == (False, "not text")


def test_the_common_answers_cost_no_sympy():
    code = """
import sys
from ovlt.reward.grading import grade
assert grade("12", "12")[0] and not grade("12", "1,300")[0] and grade("1,300", "1300")[0]
assert grade("Red", "red")[0] and not grade("red", "green")[0] and not grade("the line", "A")[0]
assert grade("B) 5", "B")[0] and grade("yes.", "Yes")[0] and grade("5 cm", "5.0")[0]
assert not grade("7", "8", parity=True)[0] and grade("x", "X", parity=True)[0]
assert "sympy" not in sys.modules and "mathruler" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=ROOT)


@pytest.mark.parametrize(
    ("response", "last", "first_line"),
    [
        ("<think>a</think> so <answer> 5 </answer>", "5", "5"),
        ("<answer>1</answer> no, <answer>2</answer>", "2", "1"),
        ("<answer>1</answer> and <answer>2", "1", "1"),
        ("<answer>\n5\n</answer>", "5", None),
        ("<answer>1 <answer>2</answer>", "2", "1 <answer>2"),
        ("<answer>1</answer></answer>", "1", "1"),
        ("</answer>5<answer>", None, None),
        ("<answer></answer>", "", ""),
        ("5", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_extract_answer(response, last, first_line):
    assert extract_answer(response) == last
    assert response is None or extract_answer(response, parity=True) == first_line
