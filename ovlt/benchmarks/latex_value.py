r"""The number that a LaTeX expression stands for, read as the rules of MATH-V and EMMA read it.

Those rules call latex2sympy2 1.9.1, whose antlr runtime cannot share an environment with
Math-Verify's, and run Python's ``eval`` on what it returns. This is a reader of its own for the
numeric part of that grammar, without ``eval``: it takes the longest valid beginning of a text and
ignores the rest, joins neighbours into products (``7\frac{1}{2}`` is 3.5), reads ``2:4`` as a
quotient and ``1,234`` as one number. A letter is a symbol, and a text with one has no value.
docs/benchmarks.md gives its agreement with the stored verdicts of both repositories.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

Number = int | float

_MAX_BITS = 1 << 14  # of an integer: a power or factorial beyond that has no value
_MAX_DEPTH = 60  # open brackets
_MAX_CHARS = 4000
_NUMBER = r"\d+(?:,\d{3})*\.\d+|\.\d+|\d+(?:,\d{3})*"
# Words of the grammar, which stand for functions of matrices and end an expression of numbers:
# "2 triangles" is 2, because of its "tr".
_WORDS = (
    "ar(?:c)?(?:sin|cos|tan)h|gcd|lcm|floor|ceil|eye|zeros|ones|cols|rows|diag(?:onalize)?|norm|rank|"
    "tr(?:ace)?|rref|[hv]stack|orth(?:o(?:gonal(?:ize)?)?)?|nullspace|"
    "eig(?:en(?:val(?:ue)?s|vect(?:or)?s)?)?|svd|[pbv]?matrix"
)
_COMPARISONS = ("<", ">", "<=", ">=", "\\le", "\\leq", "\\ge", "\\geq")
_LEXEME = re.compile(
    rf"{_WORDS}|\\end\{{[pbv]?matrix\}}|(?:{_NUMBER})(?:\\%)?|\\[a-zA-Z]+|\\[|{{}}\\]|[<>]=|[-+*/(){{}}\[\]|_^:;,.=<>!&'a-zA-Z]"
)
_OPEN = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lbrace": "\\rbrace", "\\lgroup": "\\rgroup"}
_PRODUCTS = ("*", "/", ":", "\\times", "\\cdot", "\\div", "\\mod")
_BEFORE = (  # what latex2sympy2 rewrites before it reads
    ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\displaystyle", " "), ("\\qquad", " "),
    ("\\quad", " "), ("~", " "), ("\\,", " "), ("$", " "),
)  # fmt: skip
_STOPS = (
    *_COMPARISONS, "\\ne", "\\neq", "\\in", "\\right", "\\rfloor", "\\rceil", "\\rbrace",
    "\\rgroup", "\\rightarrow", "\\to", "\\choose",
)  # fmt: skip
# Functions of one argument, and whether Python's math module has them under sympy's name: MATH-V
# evaluates the printed expression there, so that |-3| and \cot 1 have no value for its rules.
_FUNCTIONS: dict[str, tuple[Callable[[float], Number], bool]] = {
    "sin": (math.sin, True), "cos": (math.cos, True), "tan": (math.tan, True),
    "arcsin": (math.asin, True), "arccos": (math.acos, True), "arctan": (math.atan, True),
    "sinh": (math.sinh, True), "cosh": (math.cosh, True), "tanh": (math.tanh, True),
    "arsinh": (math.asinh, True), "arcosh": (math.acosh, True), "artanh": (math.atanh, True),
    "arcsinh": (math.asinh, True), "arccosh": (math.acosh, True), "arctanh": (math.atanh, True),
    "exp": (math.exp, True), "floor": (math.floor, True), "ceil": (math.ceil, False),
    "csc": (lambda x: 1 / math.sin(x), False), "sec": (lambda x: 1 / math.cos(x), False),
    "cot": (lambda x: 1 / math.tan(x), False),
    "arccot": (lambda x: math.atan(1 / x), False), "arccsc": (lambda x: math.asin(1 / x), False),
    "arcsec": (lambda x: math.acos(1 / x), False),
}  # fmt: skip


class _NoValue(Exception):
    """The text is no expression, or one without a value."""


def latex_value(text: str, *, as_python: bool = True) -> Number | None:
    """Return the value of the longest expression at the start of ``text``; None if it has none.

    ``as_python``: as MATH-V's rules have it, which evaluate sympy's printed form with the names of
    Python's ``math``; otherwise as EMMA's, which let sympy evaluate it.
    """
    if len(text) > _MAX_CHARS:
        return None
    for old, new in _BEFORE:
        text = text.replace(old, new)
    try:
        value = _Reader(text, as_python).relation()
    except (_NoValue, ArithmeticError, ValueError, RecursionError):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


class _Reader:
    """A recursive descent over the lexemes, one lexeme ahead, as lazily as the original's lexer."""

    def __init__(self, text: str, as_python: bool) -> None:
        self.text, self.as_python = text, as_python
        self.at = self.depth = 0
        self.in_bars = False  # then a bar ends the expression

    @property
    def next(self) -> str:
        """The next lexeme, "" at the end. Raises _NoValue on a character outside the grammar."""
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.at += 1
        if self.at == len(self.text):
            return ""
        match = _LEXEME.match(self.text, self.at)
        if match is None:
            raise _NoValue
        return match.group()

    def take(self, *expected: str) -> str:
        lexeme = self.next
        if not lexeme or (expected and lexeme not in expected):
            raise _NoValue
        self.at += len(lexeme)
        return lexeme

    def relation(self) -> Number:
        """An expression, or a comparison of two, which counts as 1 or 0."""
        left = self.sum()
        compare = self.next
        if compare in ("=", "\\ne", "\\neq", "\\in", ",", ";"):  # an equation, or a list
            raise _NoValue
        if compare in _COMPARISONS:
            self.take()
            right = self.sum()
            if not self.as_python:
                raise _NoValue
            if left == right:
                return int(compare not in ("<", ">"))
            return int((left < right) == (compare[0] == "<" or compare.startswith("\\l")))
        return left

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NoValue
        value = self.product(functions=True)
        while (sign := self.next) in ("+", "-"):
            self.take()
            term = self.product(functions=True)
            value = value + term if sign == "+" else value - term
        self.depth -= 1
        return value

    def product(self, *, functions: bool) -> Number:
        value = self.signed(functions=functions)
        while (sign := self.next) in _PRODUCTS:
            self.take()
            factor = self.signed(functions=functions)
            if sign == "\\mod":
                if self.as_python:
                    raise _NoValue  # printed as Mod(), which is no name of Python's math
                value = value % factor
            else:
                value = value / factor if sign in ("/", ":", "\\div") else value * factor
        return value

    def signed(self, *, functions: bool) -> Number:
        negative = False
        while (sign := self.next) in ("+", "-"):
            self.take()
            negative ^= sign == "-"
        value = self.power(functions=True)
        while self.starts(functions=functions):
            value = _bounded(value * self.power(functions=functions))
        return -value if negative else value

    def starts(self, *, functions: bool) -> bool:
        """Whether the next lexeme starts a factor."""
        lexeme = self.next
        if lexeme[:1].isdigit() or (lexeme[:1] == "." and len(lexeme) > 1):
            return True
        if lexeme == "|" and self.in_bars:
            return False
        if lexeme in _OPEN or lexeme in ("\\frac", "\\binom", "|", "\\lfloor", "\\lceil"):
            return True
        if lexeme.isalpha():
            return len(lexeme) == 1 and (functions or lexeme != "e")
        if lexeme[:1] != "\\" or lexeme in _PRODUCTS or not lexeme[1:].isalpha():
            return False
        if lexeme in _STOPS:
            return False
        is_function = lexeme[1:] in _FUNCTIONS or lexeme in ("\\sqrt", "\\log", "\\ln")
        return functions or not is_function

    def power(self, *, functions: bool) -> Number:
        value = self.factor(functions=functions)
        while self.next == "^":
            self.take()
            value = _power(value, self.exponent())
        while self.next in ("!", "'"):  # the second transposes, which changes no number
            if self.take() == "!":
                value = _factorial(value)
        return value

    def exponent(self) -> Number:
        """What follows ``^``: braces, or one atom (of ``x^12`` the whole number 12)."""
        if self.next == "{":
            return self.group()
        return self.atom()

    def group(self) -> Number:
        close = _OPEN[self.take()]
        value = self.sum()
        self.take(close)
        return value

    def factor(self, *, functions: bool) -> Number:
        lexeme = self.next
        if lexeme == "\\left":
            self.take()
            value = self.group_with_right()
        elif lexeme in _OPEN:
            value = self.group()
        elif lexeme == "\\frac":
            self.take()
            top, bottom = self.braces(), self.braces()
            value = top / bottom
        elif lexeme == "\\binom":
            self.take()
            value = _binomial(self.braces(), self.braces())
        elif lexeme in ("|", "\\lfloor", "\\lceil"):
            value = self.bars()
        elif lexeme == "\\sqrt":
            value = self.root()
        elif lexeme in ("\\log", "\\ln"):
            value = self.logarithm()
        elif lexeme[:1] == "\\" and lexeme[1:] in _FUNCTIONS:
            value = self.function()
        elif lexeme == "e":
            self.take()
            if self.next != "^":
                if self.as_python:
                    raise _NoValue  # printed as E, which is no name of Python's math
                return math.e
            self.take()
            value = math.exp(self.exponent())
        else:
            value = self.atom()
        return value

    def atom(self) -> Number:
        lexeme = self.take()
        if lexeme == "\\pi":
            return math.pi
        if not (lexeme[0].isdigit() or lexeme[0] == "."):
            raise _NoValue  # a symbol, or nothing that an expression may hold here
        digits = lexeme.replace(",", "").removesuffix("\\%")
        value = float(digits) if "." in digits else _integer(digits)
        if lexeme.endswith("\\%"):
            value = value / 100
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def braces(self) -> Number:
        self.take("{")
        value = self.sum()
        self.take("}")
        return value

    def group_with_right(self) -> Number:
        close = _OPEN.get(self.take(), "")
        value = self.sum()
        self.take("\\right")
        self.take(close)
        return value

    def bars(self) -> Number:
        lexeme, outer = self.take(), self.in_bars
        self.in_bars = lexeme == "|"
        value = self.sum()
        self.in_bars = outer
        self.take({"|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}[lexeme])
        if lexeme == "\\lfloor":
            return math.floor(value)
        if self.as_python:
            raise _NoValue
        return abs(value) if lexeme == "|" else math.ceil(value)

    def root(self) -> Number:
        self.take()
        degree: Number = 2
        if self.next == "[":
            degree = self.group()
        value = self.braces()
        return math.sqrt(value) if degree == 2 else _power(value, 1 / degree)

    def logarithm(self) -> Number:
        natural = self.take() == "\\ln"
        base = math.e if natural else 10.0
        if self.next == "_":
            self.take()
            base = self.exponent()
        elif natural and self.as_python:
            raise _NoValue  # printed with sympy's E
        exponent = self.superscript()
        return _power(math.log(self.argument()) / math.log(base), exponent)

    def function(self) -> Number:
        name = self.take()[1:]
        function, in_python = _FUNCTIONS[name]
        exponent = self.superscript()
        argument = self.argument()
        prints_e = name == "exp" and argument == 1  # E, which is no name of Python's math
        if self.as_python and (prints_e or not in_python):
            raise _NoValue
        if exponent == -1 and f"arc{name}" in _FUNCTIONS:
            return _FUNCTIONS[f"arc{name}"][0](argument)
        return _power(function(argument), exponent)

    def superscript(self) -> Number:
        if self.next != "^":
            return 1
        self.take()
        return self.exponent()

    def argument(self) -> Number:
        """What a function is applied to: brackets, or the product that follows it."""
        if self.next == "(":
            return self.group()
        return self.product(functions=False)


def _integer(digits: str) -> int:
    if len(digits) > 4000:  # Python refuses more than 4,300
        raise _NoValue
    return int(digits)


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise _NoValue
    return value


def _power(base: Number, exponent: Number) -> Number:
    are_integers = isinstance(base, int) and isinstance(exponent, int)
    if are_integers and max(1, int(base).bit_length()) * abs(exponent) > _MAX_BITS:
        raise _NoValue
    if exponent == 0.5:
        return math.sqrt(base)
    value = base**exponent
    if isinstance(value, complex):
        raise _NoValue
    return value


def _factorial(value: Number) -> int:
    if not isinstance(value, int) or not 0 <= value <= 1000:
        raise _NoValue
    return math.factorial(value)


def _binomial(n: Number, k: Number) -> int:
    if not isinstance(n, int) or not isinstance(k, int) or not 0 <= n <= 1000 or k < 0:
        raise _NoValue
    return math.comb(n, k)
