"""Bring the scripts, widths and LaTeX synonyms of an answer to one spelling, value for value.

Nothing is joined or dropped that separates two values: "2½" becomes ``2\\frac{1}{2}`` and not 21/2,
"10⁻³" becomes ``10^{-3}``, "12\\,345" keeps a blank.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()", strict=True))
_CHARACTERS = {
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\u2061\u2062\u2063", ""),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("·⋅∙×✕✖∗", "*"),
    **dict.fromkeys("º˚", "°"),
    **dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u2033", '"'),
    **dict.fromkeys("\u3001\uff0c\u060c\ufe50", ","),
    **dict.fromkeys("\u3002\uff0e\uff61", "."),
    "\u066b": ".",  # the Arabic decimal separator
    "\u066c": ",",
    "\u066a": "%",
    "÷": "/",
    "∶": ":",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≦": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≧": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≅": r"\cong ",
    "≃": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∅": r"\emptyset ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "⟂": r"\perp ",
    "∥": r"\parallel ",
    "⟨": "(",
    "⟩": ")",
    "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "ℝ": r"\mathbb{R}",
    "∘": "°",
}


def _runs(text: str, table: dict[str, str], sign: str) -> str:
    """Replace each run of super- or subscript characters by ``^{...}`` or ``_{...}``."""
    return re.sub(
        f"[{''.join(table)}]+",
        lambda run: f"{sign}{{{''.join(table[char] for char in run.group())}}}",
        text,
    )


@functools.lru_cache(4096)
def _plain(char: str) -> str:
    """Return the ASCII spelling of one character, or the character itself."""
    if char in _CHARACTERS:
        return _CHARACTERS[char]
    if (digit := unicodedata.decimal(char, None)) is not None:  # of any script
        return str(digit)
    if char.isspace():
        return "\n" if char in "\n\r\u2028\u2029" else " "
    form = unicodedata.normalize("NFKC", char)
    if "\u2044" in form:  # a vulgar fraction: 1⁄2
        top, _, bottom = form.partition("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else form
    return "".join(map(_plain, form)) if form != char and len(form) <= 8 else form


def unify_characters(text: str) -> str:
    """Return the text with other scripts' digits, wide forms and signs in ASCII or LaTeX."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = _runs(_runs(text, _SUPERSCRIPTS, "^"), _SUBSCRIPTS, "_")
    return "".join(map(_plain, text))


_NAMES = (
    "text|textrm|textnormal|textbf|textit|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|rm|bf|it"
)
_COMMANDS = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\\\(?=[A-Za-z]{2})", r"\\"),  # escaped twice; a matrix is spared below
        (
            r"\\displaystyle(?![A-Za-z])|\\(?:no)?limits(?![A-Za-z])|\\boldsymbol|\\bm(?![A-Za-z])",
            "",
        ),
        (r"\\!|\{,\}(?=\d)|\\(?=\n)", lambda m: "," if "," in m.group() else ""),
        (r"(?<=[^\s,;])\s*[,;]?\s*\\q?quad(?![A-Za-z])\s*[,;]?\s*(?=[^\s,;][^=]{0,20}=)", ", "),
        (r"\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])|(?<!\\)\\[,;: ]|~", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])", r"\\le"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:approxeq|simeq)(?![A-Za-z])", r"\\approx"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\measuredangle(?![A-Za-z])", r"\\angle"),
        (r"\\lg(?![A-Za-z])|(?<![A-Za-z\\])lg(?=\s*[\d(])", r"\\log_{10} "),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"^([^{}]*)\\over(?![A-Za-z])([^{}]*)$", r"\\frac{\1}{\2}"),
        (r"\\begin\{array\}\s*\{[^{}]*\}", r"\\begin{pmatrix}"),
        (r"\\end\{array\}", r"\\end{pmatrix}"),
        (r"\bper cent\b", "percent"),
        (r"\b(?:the set of )?all real(?:s| numbers)\b", r"\\mathbb{R}"),
        (r"^\](?=[^\[\]()]*[,;][^\[\]()]*[\[\]]$)", "("),  # ]a, b[ is open
        (r"(?<=^[\[(])([^\[\]()]*[,;][^\[\]()]*)\[$", r"\1)"),
        (r"\\backslash(?![A-Za-z])", r"\\setminus"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:l|r)vert(?![A-Za-z])|\\vert(?![A-Za-z])|\\mid(?![A-Za-z])", "|"),
        (r"\\langle(?![A-Za-z])|(?<![^\s])<(?=[^<>=]+,[^<>=]+>\s*$)", "("),
        (r"\\rangle(?![A-Za-z])|(?<=[\w)}])>$", ")"),
        (r"\\\{\s*\\\}", r"\\emptyset "),
        (r"^\s*\\\{\s*[A-Za-z]\s*(?:\||:|\\mid(?![A-Za-z]))(.*)\\\}\s*$", r"\1"),  # {x | x > 3}
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\operatorname\*?\s*\{([A-Za-z]+)\}", r"\\\1 "),
        (rf"\{{\s*\\(?:{_NAMES})(?![A-Za-z])\s*([^{{}}]*)\}}", r"\\text{\1}"),  # {\rm cm}
        (rf"\\(?:{_NAMES})\s*(?=\{{)", r"\\text"),
        (r"\\text\s*\{\s*m\s*\}\s*(?=\\angle)", "m"),  # the measure of an angle
        (r"\\(?:rm|bf|it|sf)(?![A-Za-z])\s*", ""),
        (r"\$(?=\S)([^$]*\S)\$(?!\d)", r" \1 "),  # math inside text; not "$5 or $6"
        (
            r"(?<=[\d)}\]])\s*\^\s*(?:\{\s*(?:\\circ|°|o)\s*\}|\\circ(?![A-Za-z])|°|o(?![A-Za-z]))",
            "°",
        ),
        (r"\\(?:text)?degrees?(?![A-Za-z])|\\circ(?![A-Za-z])|\{degrees?\}", "°"),
        (r"\s+°", "°"),
        (r"\\(?=[%&#])", ""),
        (r"\*\*", "^"),
    )
]


def unify_latex(text: str) -> str:
    """Return the text with one LaTeX command for each meaning, and text in ``\\text{...}``."""
    for pattern, to in _COMMANDS[1:] if "\\begin" in text else _COMMANDS:
        text = pattern.sub(to, text)
    return text


_WRAPPERS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\*\*((?:(?!\*\*).)+)\*\*",
        r"__([^_]+)__",
        r"\*([^*]+)\*",
        r"`+([^`]+)`+",
        r"\$+([^$]+)\$+",
        r"\\\((.+)\\\)",
        r"\\\[(.+)\\\]",
        r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}",
        r"[\"\u201c]([^\"\u201c\u201d]+)[\"\u201d]",
        r"['\u2018]([^'\u2018\u2019]+)['\u2019]",
        r"\{([^{},;]+)\}",  # braces around one value are LaTeX's, around several a set
        r"<(\w+)>",
    )
]


def undress(text: str) -> str:
    """Remove markdown, math delimiters, quotes and full stops that enclose the whole text."""
    for _ in range(8):  # wrappers may be nested; nobody nests eight
        before = text
        text = text.strip()
        text = text.rstrip(".,;").rstrip() or text
        for wrapper in _WRAPPERS:
            if whole := wrapper.fullmatch(text):
                text = whole.group(1)
        if text == before:
            break
    return text
