"""What the judge is asked: ovlt's own wording of each official request.

Task, number of worked examples and the form of the reply are the authors'; the words are not, so a
number lies close to one of theirs and is not equal to the last tenth. Results name the judge and
these prompts.
"""

from __future__ import annotations

from collections.abc import Callable

from ovlt.benchmarks.columns import lettered, options_of, text_of
from ovlt.benchmarks.items import BenchmarkRow
from ovlt.benchmarks.mathverse import last_words
from ovlt.benchmarks.mathvista import build_query

VERSION = "ovlt-1"  # of the wording below; part of the key under which replies are cached

_EXTRACT_HEAD = (
    "A model has answered a question. Write only the answer that it ends with, in the form that "
    "the hint asks for, and nothing else. First some examples.\n\n"
)
_EXTRACT_EXAMPLES = (
    (
        "Hint: Give an integer at the end, e.g., 1, 2, 3.\nQuestion: How many ducks swim there?",
        "I count nine ducks beside the reeds and five more near the boat, fourteen in all.",
        "14",
    ),
    (
        "Hint: Give a number with one decimal place, e.g., 1.2.\nQuestion: What share is empty?",
        "Of ten seats seven are taken, so three tenths, that is 0.3, of them are empty.",
        "0.3",
    ),
    (
        "Hint: Give a number with two decimal places, e.g., 1.23.\nQuestion: What do they cost?",
        "The pen is $0.80 and the ruler $1.15. Together that makes $1.95.",
        "1.95",
    ),
    (
        "Hint: Give a Python list, e.g., [1, 2, 3].\nQuestion: When did sales fall most?",
        "The steepest part of the line lies between 2011 and 2012.",
        "[2011, 2012]",
    ),
    (
        "Hint: Give a letter.\nQuestion: What is shaded?\nChoices:\n(A) 1/3\n(B) 2/5",
        "Two of the five strips are shaded, which is option (B), 2/5.",
        "B",
    ),
)
_SHORT_HEAD = (
    "Below is what a model wrote about a mathematics problem. Write the final answer that "
    "it gives, exactly as it gives it and without explanation; write null if it gives none. First "
    "some examples.\n\n"
)
_SHORT_EXAMPLES = (
    ("The arcs are equal, so the wanted angle is 35 degrees. The answer is A.", "A"),
    ("Solving both equations, the side is therefore 4√2.", "4√2"),
    ("The domain is (-3, 2] and the range is [0, 5).", "Domain: (-3, 2], Range: [0, 5)"),
    ("The figure cannot be made out.", "null"),
    ("From the graph, f(3) = 7 and the choice is D: 7.", "D: 7"),
    ("The volume is V = 36π cubic metres.", "V = 36π"),
)
_SAME_HEAD = (
    "Question, standard answer and a model's answer follow. Write 1 if the model's answer is "
    "consistent with the standard answer, else 0; write nothing else. For questions with options "
    "the option must be the same; for others the same meaning is enough, for instance 0.5 m and "
    "50 cm. First some examples.\n\n"
)
_SAME_EXAMPLES = (
    ("Find the angle. Choices:\nA:30°\nB:45°\nC:60°\nD:90°", "B", "B", "1"),
    ("Find the length of the arc. Choices:\nA:π\nB:2π\nC:3π\nD:4π", "A", "C:3π", "0"),
    ("State domain and range.", "domain: [0, 2), range: (1, 4]", "Range: (1, 3]", "0"),
    ("Find the area. Choices:\nA:4\nB:6\nC:8\nD:10", "D", "null", "0"),
    ("How high is the pole?", "2.5 m", "250 cm", "1"),
)


def _extract(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    query = text_of(row, "query") or _query(row)
    shown = "".join(
        f"{question}\nModel response: {text}\nExtracted answer: {answer}\n\n"
        for question, text, answer in _EXTRACT_EXAMPLES
    )
    return f"{_EXTRACT_HEAD}{shown}{query}\nModel response: {response}\nExtracted answer: "


def _query(row: BenchmarkRow) -> str:
    if "answer_type" in row:
        return build_query(row)
    options = options_of(row)
    choices = f"\nChoices:\n{lettered(options, '({}) {}')}" if options else ""
    wanted = "the letter of the correct option" if options else "the final answer"
    return f"Hint: Give {wanted} at the end.\nQuestion: {text_of(row, 'question')}{choices}"


def _extract_short(
    row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]
) -> str:
    shown = "".join(
        f"Model response: {text}\nExtracted Answer: {answer}\n\n"
        for text, answer in _SHORT_EXAMPLES
    )
    text = last_words(response, settings)
    return f"{_SHORT_HEAD}{shown}Model response: {text}\nExtracted Answer: "


def _consistent(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    shown = "".join(
        f"Question: {question}\nStandard answer: {truth}\nModel's answer: {given}\n"
        f"Judgement: {verdict}\n\n"
        for question, truth, given, verdict in _SAME_EXAMPLES
    )
    question = text_of(row, "question_for_eval") or text_of(row, "question")
    return (
        f"{_SAME_HEAD}{shown}Question: {question}\nStandard answer: {text_of(row, 'answer')}\n"
        f"Model's answer: {extraction}\nJudgement: "
    )


def _yes_no(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    question = text_of(row, "query_cot") or text_of(row, "question_for_eval")
    return (
        "Decide whether a predicted answer to a mathematics question is correct, given the ground "
        "truth. Think step by step, then end with the line 'Judgement: Yes' or 'Judgement: No'.\n\n"
        f"Question: {question}\nGround truth: {text_of(row, 'answer')}\n"
        f"Predicted answer: {[extraction]}"
    )


def _correct(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    return (
        "Decide whether the final answer of a response agrees with the answer; it usually stands "
        "in \\boxed{}. How it was reached does not matter. Write Correct or Incorrect and nothing "
        "else.\n\n"
        "Response: So the right option is \\boxed{D}.\nAnswer: D\nCorrect_or_not: Correct\n\n"
        "Response: The picture shows \\boxed{7} edges.\nAnswer: 9\nCorrect_or_not: Incorrect\n\n"
        f"Response: {response}\nAnswer: {text_of(row, 'answer')}\nCorrect_or_not: "
    )


def _conflict(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    return (
        "You are a careful teacher. Read the question, the reference answer and the prediction. "
        'Write "correct" if the prediction does not conflict with the reference answer, '
        '"incorrect" if it does, and "unclear" if the prediction does not make clear what it '
        f"answers.\n\nQuestion: {text_of(row, 'question')}\n"
        f"Reference answer: {text_of(row, 'gt_answer_details')}\nPrediction: {response}\nOutput: "
    )


def _yes_or_no(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    return (
        "A question is to be answered with Yes or No. Say which of the two an answer means: write "
        "one word, Yes, No, or Unknown if it means neither.\n"
        "Question: Is the sign in the picture red?\nAnswer: The sign has a red face.\n"
        "Your output: Yes\n"
        "Question: Is the sign in the picture red?\nAnswer: The sign is a blue one.\n"
        "Your output: No\n"
        f"Question: {text_of(row, 'question')}\nAnswer: {response}\nYour output: "
    )


def _option(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    options = lettered(options_of(row), "{}. {}")
    return (
        "Match an answer with the options of a question: write the single capital letter of the "
        "option that is closest in meaning, or Z if none is close.\n"
        "Question: What stands in the yard?\nOptions: A. a cart B. a horse C. a well D. a barn\n"
        "Answer: an old horse\nYour output: B\n"
        "Question: What stands in the yard?\nOptions: A. a cart B. a horse C. a well D. a barn\n"
        "Answer: a tractor\nYour output: Z\n"
        f"Question: {text_of(row, 'question')}\nOptions: {options}\nAnswer: {response}\n"
        "Your output: "
    )


def _short(row: BenchmarkRow, response: str, extraction: str, settings: frozenset[str]) -> str:
    return (
        "Decide whether a response answers a question correctly. Write [Begin Correctness]yes[End "
        "Correctness] or [Begin Correctness]no[End Correctness], then your reason between [Begin "
        "Reason] and [End Reason]. If the reference answer is a list, all of it must be there.\n"
        f"Question: {text_of(row, 'question')}\nReference answer: {text_of(row, 'answer')}\n"
        f"Response: {response}"
    )


Wording = Callable[[BenchmarkRow, str, str, frozenset[str]], str]
# kind -> (wording, most tokens of the reply)
_KINDS: dict[str, tuple[Wording, int]] = {
    "extract": (_extract, 1024),
    "extract_short": (_extract_short, 256),
    "consistent": (_consistent, 256),
    "yes_no": (_yes_no, 1024),
    "correct": (_correct, 32),
    "conflict": (_conflict, 256),
    "yes_or_no": (_yes_or_no, 32),
    "option": (_option, 32),
    "short": (_short, 1024),
}


def wording(
    benchmark: str, kind: str, row: BenchmarkRow, response: str, extraction: str,
    settings: frozenset[str],
) -> tuple[str, int]:  # fmt: skip
    """Return the request to the judge, and the most tokens of its reply."""
    if kind == "extract" and benchmark == "mathverse":
        kind = "extract_short"
    make, max_tokens = _KINDS[kind]
    return make(row, response, extraction, settings), max_tokens
