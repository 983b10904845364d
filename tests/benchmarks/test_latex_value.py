r"""Numbers in LaTeX, as the original parser reads them.

The expected values are what latex2sympy2 1.9.1 and MATH-V's ``eval`` gave; on 10,727 strings of
that repository's outputs the two agree on all (docs/benchmarks.md).
"""

from __future__ import annotations

import random
import time

import pytest

from ovlt.benchmarks.latex_value import latex_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac{1}{3}", 0.33),
        (r"$7\frac{1}{2}$", 3.5),  # neighbours are a product
        ("1,234", 1234),
        ("2:4", 0.5),
        ("$1: 2: 3$", 0.17),
        (r"64\sqrt{3}}.theansweris:64\sqrt{3", 110.85),  # the longest valid beginning
        ("9.theareaofthegraysquare", 9),
        ("5(2)^2+5(13)/5", 33),
        ("13!", 6227020800),
        (r"\arcsin\frac{5}{6}", 0.99),
        (r"\sin^{2}(1)", 0.71),
        (r"5\%", 0.05),
        ("2-3-4-1", -6),
        ("$1010^{2}$", 1020100),
        (r"4\frac{1}{4}}.\end{align*", 1),
        ("2 triangles", 2),  # ends before "tr", which stands for a trace
        ("-2^2", -4),
        (r"\sqrt[3]{8}", 2),
        (r"\log_{2}8", 3),
        (r"\binom{5}{2}", 10),
        (r"5\end{pmatrix}", 5),
    ],
)
def test_a_number_is_read(text: str, value: float) -> None:
    given = latex_value(text)
    assert given is not None
    assert round(given, 2) == value


@pytest.mark.parametrize(
    "text",
    [
        "45°", r"\frac{360}7", "2x+1", "x", "", "1,2,3", r"10 \%", "x=5", "3=3", r"\frac{1}{0}",
        r"\sqrt{-1}", "|-3|", "e", r"\ln(2)", r"1.5\end{", "12cm", r"1,\!004", "9" * 5000,
        "9^{9^{9}}", "(" * 5000, r"\frac{1}{" * 300, "5" + "!" * 50,
    ],
)  # fmt: skip
def test_what_has_no_value_for_the_original_has_none(text: str) -> None:
    assert latex_value(text) is None


def test_emmas_rules_let_sympy_evaluate() -> None:
    assert latex_value("|-3|", as_python=False) == 3
    assert latex_value("e", as_python=False) == pytest.approx(2.718281828)
    assert latex_value("3<5", as_python=False) is None
    assert latex_value("3<5") == 1


def test_no_text_raises_or_takes_long() -> None:
    generator = random.Random(0)
    pieces = [r"\frac", "{", "}", "(", ")", "^", "9", "99", "!", r"\sqrt", "[", "]", "e", "x", "-",
              r"\left", r"\right", "|", ":", "°", r"\sin", r"\log", "_", ",", ".", "=", "<",
    ]  # fmt: skip
    start = time.perf_counter()
    for _ in range(3000):
        latex_value("".join(generator.choices(pieces, k=generator.randint(1, 60))))
    assert time.perf_counter() - start < 10
