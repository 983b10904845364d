"""Read the option letter, or the yes or no, that an answer states, with whatever follows it."""

from __future__ import annotations

import re

_OPTION_TRUTH = re.compile(r"[\[(<]?([A-Za-z])[\])>]?[.:]?")
_NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|none|no|wrong|incorrect|false)\b|n['\u2019]t\b", re.I
)
# What may stand before a label: "Option C", "So, the answer is C", "I think it is C", "答案是C".
_LEAD = re.compile(
    r"(?P<lead>.*?(?:\b(?:is|be|are|option|choice|choose|answer|select|pick|say|guess|letter|so|thus|therefore|"
    r"hence|figure|graph|diagram|image|picture|panel|point|line|curve|shape|region|statement)\b"
    r"|:|[选為为是]|\\Rightarrow|\\therefore))[\s:,]*(?:(?:the )?(?:option|choice|letter)\s*)?"
    r"(?=[\[(<{*$\"'\\]*(?:text\{)?[\[(]?[A-Za-z](?![A-Za-z]))",
    re.IGNORECASE | re.DOTALL,
)
_LABEL = re.compile(
    r"(?P<open>(?:[\[(<{*$\"'\u201c\u2018]|\\text\s*\{|\\boxed\s*\{)*)(?P<label>[A-Za-z])"
    r"(?![A-Za-z0-9_^=+'\u2019]|\s*[=+^<>])(?P<rest>.*)",
    re.DOTALL,
)
_CLOSERS = "])}>*$\"'\u201d\u2019"
_SEPARATOR = r"(?:\bor\b|\band\b|\bnor\b|\bvs\b|[,;/&|+])"
_ONLY_LETTERS = re.compile(r"(?:\W*(?:\b(?:or|and)\b\W*)?\b[A-Z]\b)+\W*")
_NEXT_LETTER = re.compile(
    rf"\s*{_SEPARATOR}\s*(?:(?:then|also|maybe|perhaps|possibly|option|choice)\s+)*[\[(]?"
    r"(?:(?![AI]\b)[A-Z]\b(?!['\u2019])|[AI]\b(?!['\u2019]|\s+[a-z]))"
)
_OTHER_LABEL = re.compile(
    rf"(?:{_SEPARATOR}|\bbut\b|\bmaybe\b|\bperhaps\b)\s*(?:option |choice |answer )?"
    r"(?:[\[(][A-Z][\])]|[A-Z][.):](?=\s|$))"
    r"|[\[(][A-Z][\])]\s*$"
)
_CORRECTED = re.compile(
    r"\b(?:[Aa]ctually|[Ww]ait|[Rr]ather|[Ii]nstead)\b\W*(?:it is |it's |the answer is )?"
    r"[\[(]?[A-Z]\b(?!\s+[a-z])"
)
_SENTENCE_END = re.compile(r"(?:(?<=\w\w)|(?<=\d)|(?<=[)\]}%]))[.!?](?=\s)|\n")
_REASON = re.compile(
    r"(?:because|since|as|for|is|has|which|due|given|from|with|by|so|thus|where|therefore)\b", re.I
)
_DENIED = re.compile(
    r"\s*(?:is|was|are|can|could|does|do|would)?(?:n['\u2019]t|\s*(?:not|wrong|incorrect|false|never)\b"
    r"|\s*(?:a|the)?\s*(?:wrong|incorrect)\b)|\s*cannot\b",
    re.IGNORECASE,
)


def option_of(truth: str) -> str | None:
    """Return the letter of a ground truth that is one option letter and nothing else."""
    match = _OPTION_TRUTH.fullmatch(truth)
    return match.group(1) if match else None


def option_label(given: str) -> str | None:
    """Return the option letter that an answer states; None for no letter or for several.

    The letter that stands first counts, after a lead such as "The answer is", unless a second one
    is offered beside it: "C because it is longer" is C, "A and B" is nothing.
    """
    match = _LABEL.match(given)
    if match is None or _is_word(match):
        lead = _LEAD.match(given)
        if lead is None or _NEGATED.search(lead.group("lead")):
            return None
        if re.search(r"(?<![A-Za-z0-9])(?![AI]\b)[A-Z](?![A-Za-z0-9'\u2019])", lead.group("lead")):
            return None  # another letter stands before it
        match = _LABEL.match(given, lead.end())
        if match is None or _is_word(match):
            return None
    rest = match.group("rest")
    if _offers_another(rest) or _DENIED.match(rest.lstrip(_CLOSERS)):
        return None
    return match.group("label")


def _is_word(match: re.Match[str]) -> bool:
    """Return whether the letter is an article or a pronoun: "A dog", "I think"."""
    rest = match.group("rest")
    if match.group("open") or not rest[:1].isspace() or "\n" in rest[:2]:
        return False
    if match.group("label") not in "AaIi" and match.group("label").isupper():
        return False
    following = rest.lstrip()
    starts_value = re.match(r"[\d$\\(\[{\-\u2013\u2014.:,;/&|=√π+]|$", following)
    return not (starts_value or _REASON.match(following) or re.match(_SEPARATOR, following))


def _offers_another(rest: str) -> bool:
    after = rest.lstrip(_CLOSERS)
    only_letters = after.strip() and _ONLY_LETTERS.fullmatch(after)
    first = _SENTENCE_END.split(after.lstrip(" .:\n"), maxsplit=1)[0]  # what follows explains it
    return bool(
        only_letters
        or _NEXT_LETTER.match(after)
        or _OTHER_LABEL.search(first)
        or _CORRECTED.search(after)
    )


_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true", "是": "否", "否": "是"}
_FOLLOWS_NO = (
    "it|they|there|he|she|this|that|these|those|the|we|you|i|because|since|as|but|not|none|neither|"
    "according|in|its"
)
_SAYS = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is)?\s*:?\s*"
    r"|i think\s+|(?:it|this|that|the (?:statement|claim))\s+is\s+|答案是?:?\s*)?"
    rf"[*_]*(?P<word>{'|'.join(_OPPOSITE)})(?![A-Za-z])[*_]*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)


def is_verdict(truth: str) -> bool:
    """Return whether a ground truth is yes, no, true or false."""
    return truth.casefold() in _OPPOSITE


def says(given: str, truth: str) -> bool:
    """Return whether an answer begins with the verdict ``truth`` and does not retract it."""
    match = _SAYS.fullmatch(given)
    truth = truth.casefold()
    if match is None or match.group("word").casefold() != truth:
        return False
    rest = match.group("rest").casefold()
    follows = rf"\s+(?:{_FOLLOWS_NO})\b" if truth == "no" else r"\s"
    if rest.strip() and not re.match(rf"\s*[.,;:!)\-]|{follows}", rest):
        return False  # "no idea", "yesterday"
    tail = re.sub(r"^\W*(?:(?:or|and|but|maybe|also|wait|then)\b\W*)*", "", rest)
    if re.match(rf"\W*(?:or|and|/)\W*{_OPPOSITE[truth]}\b", rest):
        return False
    return re.match(rf"{_OPPOSITE[truth]}\b(?!\s+\w)", tail) is None
