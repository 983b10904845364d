"""Write an answer as LaTeX for latex2sympy; refuse what is no mathematics or explodes."""

from __future__ import annotations

import re

MAX_CHARS = 128  # of one expression; the parser's time grows with length and depth
_MAX_DEPTH = 10
_FUNCTIONS = (
    "arcsin|arccos|arctan|arsinh|arcosh|artanh|sinh|cosh|tanh|coth|sin|cos|tan|cot|sec|csc|"
    "ln|log|exp"
)
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|"
    "phi|chi|psi|omega|pi"
)
_GREEK_SIGNS = dict(zip("αβγδεζηθικλμνξπρστυφχψω", (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega").split(), strict=True)) | {
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_ALLOWED = set(
    f"cbrt|,|{_FUNCTIONS}|{_GREEK}|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|varphi|varepsilon|"
    "vartheta|frac|sqrt|binom|pm|mp|infty|cup|cap|setminus|emptyset|in|notin|le|ge|ne|approx|mathbb|"
    "begin|end|overline|lfloor|rfloor|lceil|rceil|max|min|gcd|lcm|circ|to|cdot|{|}|\\".split("|")
)
_REFUSED = (
    ("power", re.compile(r"\^\s*\^|\^\s*[^\s{(\d\w\\+-]")),
    ("factorial", re.compile(r"!\s*!|\d{4,}\s*!|[)}\]]\s*!")),
    ("large exponent", re.compile(r"\^\s*\{?\s*\(?\s*[+-]?\s*\d{4,}|\d[eE][+-]?\d{4,}")),
    ("long number", re.compile(r"[\d.]{31}")),
)
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{3,}|(?<=\d )[A-Za-z]{2,}(?![A-Za-z(])")


def to_latex(text: str) -> str:
    """Return an expression in LaTeX. Raises ValueError with the reason if it is refused."""
    if len(text) > MAX_CHARS:
        raise ValueError("long expression")
    text = _commands(text)
    if danger := danger_in(text):
        raise ValueError(danger)
    if unknown := set(re.findall(r"\\([A-Za-z]+|.)", text)) - _ALLOWED:
        raise ValueError(f"\\{min(unknown)}")
    if _WORD.search(re.sub(r"\\(?:begin|end)\{[a-z]*matrix\}", "", text)):
        raise ValueError("words")
    if re.search(r"[#&|~@;'\"`$]", re.sub(r"\\begin.*?\\end|\|[^|]+\|", "", text, flags=re.DOTALL)):
        raise ValueError("syntax")
    text = _arguments(_degrees(_mixed_numbers(text)))
    text = re.sub(r"(?<![A-Za-z\\])([A-Za-z])(\d+)", r"\1_{\2}", text)  # x1 is x_1, not x times 1
    # 4/3 x and x/2 y are read from left to right
    text = re.sub(
        r"(?<![\w}])(\d+|[A-Za-z])\s*/\s*(\d+)(?=\s*[A-Za-z\\(])", r"\\frac{\1}{\2}", text
    )
    # x^10 means x^{10}; 1/2 and x^-1 likewise
    text = re.sub(r"\^\s*(-?\s*\d+(?:\.\d+)?)", r"^{\1}", text)
    text = re.sub(r"\^\s*(-\s*[A-Za-z])", r"^{\1}", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?![^()]*[)\]])", "", text)
    text = re.sub(r"(\d*)\.(\d+)", _exact_decimal, text).replace("*", r"\cdot ")
    return _without_outer_brackets(text.strip())


def _commands(text: str) -> str:
    """Write Greek letters and the names of functions as commands."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    for sign, name in _GREEK_SIGNS.items():
        if sign in text:
            text = text.replace(sign, rf"\{name} ")
    text = re.sub(rf"(?<![A-Za-z\\])(?:{_FUNCTIONS}|{_GREEK})(?![A-Za-z])", r"\\\g<0> ", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty ", text)
    return re.sub(r"(?<![A-Za-z\\])(sqrt|cbrt)(?![A-Za-z])", r"\\\1 ", text)


def _mixed_numbers(text: str) -> str:
    """Bracket "1 1/2" and "1\\frac{1}{2}", join "1 234"; ValueError for other numbers in a row."""
    text = re.sub(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\d.])\d{1,3}(?: \d{3})+(?!\d)", lambda m: m.group().replace(" ", ""), text)
    if re.search(r"(?<![_c])\d\s+\d", text):
        raise ValueError("two numbers side by side")
    return re.sub(r"(?<![\d.^_])(\d+)\s*(\\frac\s*\{\d+\}\s*\{\d+\})", r"(\1+\2)", text)


def danger_in(text: str) -> str | None:
    """Return what in a text could make sympy run away; None if nothing does."""
    for name, pattern in _REFUSED:
        if pattern.search(text):
            return name
    return "deep nesting" if _depth(text) > _MAX_DEPTH else None


def _degrees(text: str) -> str:
    """Write the degrees of an angle in radians inside a function; elsewhere drop the sign."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"{\\frac{\1 \\pi}{180}}", text)
    return text.replace("°", "")


def _exact_decimal(match: re.Match[str]) -> str:
    """Write 1.5 as a fraction: a float would be rounded."""
    whole, digits = match.groups()
    return rf"\frac{{{whole}{digits}}}{{1{'0' * len(digits)}}}"


def _arguments(text: str) -> str:
    """Write sqrt(x), cbrt(x), exp(x), x^(y) with braces, and \\sqrt2 and \\frac12 too."""
    text = re.sub(r"\\sqrt\s*(\[\w+\])?\s*(\d+|[A-Za-z])", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    for _ in range(12):  # each round rewrites one
        match = next(
            (
                m
                for m in re.finditer(r"(\\sqrt(?:\[\w+\])?|\\cbrt|\\exp|\^)\s*([({])", text)
                if m.group(2) == "(" or m.group(1) in ("\\cbrt", "\\exp")
            ),
            None,
        )
        if match is None:
            break
        end = _closing(text, match.start(2))
        if end < 0:
            raise ValueError("brackets")
        head = {"\\cbrt": r"\sqrt[3]", "\\exp": "e^"}.get(match.group(1), match.group(1))
        inner = text[match.end() : end]
        text = f"{text[: match.start()]}{head}{{{inner}}}{text[end + 1 :]}"
    return text


def _closing(text: str, at: int) -> int:
    """Return the place of the bracket that closes the one at ``at``; -1 if there is none."""
    level = 0
    for place in range(at, len(text)):
        level += (text[place] in "({[") - (text[place] in ")}]")
        if level == 0:
            return place
    return -1


def _depth(text: str) -> int:
    level = deepest = 0
    for char in text:
        level += (char in "({[") - (char in ")}]")
        deepest = max(deepest, level)
        if level < 0:
            break
    return deepest


def _without_outer_brackets(text: str) -> str:
    matrix = text[:1] == "[" and text[1:].lstrip().startswith(r"\begin")
    while (text[:1] == "(" or matrix) and _closing(text, 0) == len(text) - 1 and "," not in text:
        matrix = False
        text = text[1:-1].strip()
    return text
