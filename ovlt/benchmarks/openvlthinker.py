"""Style ``openvlthinker``: the prompts, extraction and verdict of the paper's own harness.

Facts: evaluation/eval_openvlthinker.py of uclanlp/OpenVLThinker at 6997b47. Images go first, tags
in the text stay as text. MathVerse's final number comes from a judge.
"""

from __future__ import annotations

from ovlt.benchmarks.columns import letter, lettered
from ovlt.benchmarks.items import Ask, BenchmarkRow, RuleRun, Ruling
from ovlt.reward.symbolic import ask_mathruler

FAILED = "Failed to extract."
_MAX_OPTION = 10  # options beyond J have no letter there


def with_choices(question: str, options: list[str]) -> str:
    """Return the prompt of a question with options, or of one without if there are none."""
    if not options:
        return f"Hint: Please answer the question requiring an answer.\nQuestion: {question}"
    return (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
        f"E, at the end.\nQuestion: {question}\nChoices:\n{lettered(options, '({}) {}')}"
    )


def yes_or_no(question: str) -> str:
    """Return the prompt of a question of HallusionBench."""
    return (
        f"Hint: Please answer the question requiring an answer of yes or no.\nQuestion: {question}"
    )


def in_the_image(options: list[str]) -> str:
    """Return the prompt of a question that is in the picture (MMMU-Pro vision)."""
    return (
        "Hint: Please answer the question shown in the image. Provide the correct option letter, "
        f"e.g., A, B, C, D, E, at the end.\nChoices:\n{lettered(options, '({}) {}')}"
    )


def truth_of(answer: str, options: list[str]) -> str:
    """Return the letter of an answer that is one of the options (its first place), else itself."""
    if answer in options[:_MAX_OPTION]:
        return letter(options.index(answer))
    return answer


def extract(response: str) -> str:
    """Return the last answer between tags, stripped; FAILED if no tag is closed.

    Without an opening tag it is everything before the first ``</answer>``.
    """
    if "</answer>" not in response:
        return FAILED
    return response.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def is_right(extracted: str, truth: str) -> bool:
    """Equal ignoring case, or equal to MathRuler with its two arguments exchanged, as there."""
    return extracted.lower() == truth.lower() or ask_mathruler(truth, extracted)[0]


def rule_for(truth: str, response: str) -> Ruling:
    """Return the ruling on a response for a ground truth."""
    extracted = extract(response)
    if extracted == FAILED:
        return Ruling(False, FAILED, "no closed answer tag")
    return Ruling(is_right(extracted, truth), extracted, "equal or MathRuler")


def truth_in(row: BenchmarkRow, computed: str) -> str:
    """Return the ground truth: the row's own ``ground_truth``, if it states one."""
    stated = row.get("ground_truth")
    return computed if stated is None else str(stated)


def judged(truth: str, response: str) -> RuleRun:
    """Rule on MathVerse: a judge sees question, truth and extraction, and says Yes or No.

    Failed extractions are judged too. Without a judge: right if the plain verdict is, else open.
    """
    extracted = extract(response)
    reply = yield Ask("yes_no", extracted)
    if reply is None:
        if extracted != FAILED and is_right(extracted, truth):
            return Ruling(True, extracted, "equal or MathRuler, no judge")
        return Ruling(None, extracted, "no judge", "nobody")
    stated = reply.partition("Judgement: ")[2] if "Judgement: " in reply else None
    if stated is None:
        plain = reply.strip()
        if plain not in ("Yes", "No"):
            return Ruling(None, extracted, "the judge's reply has no Judgement", "nobody")
        return Ruling(plain == "Yes", extracted, "judge", "judge")
    if "Yes" in stated or "No" in stated:
        return Ruling("Yes" in stated, extracted, "judge", "judge")
    return Ruling(None, extracted, "the judge's reply is neither Yes nor No", "nobody")
