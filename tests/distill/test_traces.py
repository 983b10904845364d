"""Responses into traces: what is one, which is kept, what a filter leaves, what is learned."""

from __future__ import annotations

import pytest

from ovlt.config import DistillConfig
from ovlt.distill.traces import NoTrace, Trace, assemble, choose, fill, keep, parse

R1 = "First 2 + 3 is 5.\n\nWait, check: yes.\n</think>\n\nThe sum is 5.\n\n<answer>5</answer>"


def test_a_response_in_its_parts() -> None:
    for text in (R1, "<think>\n" + R1, "Sure. <think>" + R1):
        trace = parse(text)
        assert trace == Trace("First 2 + 3 is 5.\n\nWait, check: yes.", "The sum is 5.", "5")
        assert trace.words == 9
    tagged = parse("<think>a</think> b <answer>old</answer> c <answer> 7 </answer>")
    assert tagged.answer == "7"
    nested = parse(r"<think>a</think>So \boxed{1} or rather \boxed{\frac{1}{2}}.")
    assert nested.answer == r"\frac{1}{2}"
    assert nested.summary == r"So \boxed{1} or rather \boxed{\frac{1}{2}}."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<think>round and round", "does not end"),
        ("<answer>5</answer>", "does not end"),
        ("<think>a</think> no answer here", "no answer"),
        ("<think>a</think><answer></answer>", "no answer"),
        (r"<think>a</think> \boxed{5", "no answer"),
        ("<think> \n</think><answer>5</answer>", "nothing was reasoned"),
    ],
)
def test_what_is_no_trace_says_why(text: str, why: str) -> None:
    with pytest.raises(NoTrace, match=why):
        parse(text)


def test_what_was_cut_is_no_trace() -> None:
    with pytest.raises(NoTrace, match="token limit"):
        parse(R1, finished=False)


def test_the_papers_keep_the_shortest_and_the_code_the_second_longest() -> None:
    assert choose([30, 10, 20], "shortest") == 1
    assert choose([10, 10], "shortest") == 0
    assert choose([30, 10, 20, 40], "second_longest") == 0
    assert choose([30, 10], "second_longest") == 1
    assert choose([7], "second_longest") == 0
    assert choose([20, 20, 20], "second_longest") in (0, 1)


def test_filters() -> None:
    trace = parse(R1)
    assert keep(trace, "none") is trace
    assert keep(trace, "max_words", 9) is trace
    with pytest.raises(NoTrace, match="longer than 8 words"):
        keep(trace, "max_words", 8)
    left = keep(trace, "reflections")
    assert left == Trace("First 2 + 3 is 5.", "The sum is 5.", "5")
    for phrase in ("But wait", "But the question", "Wait"):
        cut = keep(Trace(f"One. {phrase}, two. Wait.", "", "1"), "reflections")
        assert cut.think == "One."
    untouched = Trace("They await a Waiter. But then?", "", "1")
    assert keep(untouched, "reflections") is untouched
    with pytest.raises(NoTrace, match="nothing is left"):
        keep(Trace("Wait, what?", "", "1"), "reflections")


def test_what_is_learned() -> None:
    form = DistillConfig().form
    assert assemble(Trace("t", "s", "a"), form) == "<think>\nt\n</think>\n\ns\n\n<answer>a</answer>"
    assert assemble(Trace("t", "", "a"), form) == "<think>\nt\n</think>\n\n<answer>a</answer>"
    sly = Trace("{answer} {summary}", "{think}", "{1}")
    assert assemble(sly, "{think}|{summary}|{answer}") == "{answer} {summary}|{think}|{1}"


def test_places_are_filled_once() -> None:
    assert fill("{a} {b} {c}", {"a": "{b}", "b": "2"}) == "{b} 2 {c}"
