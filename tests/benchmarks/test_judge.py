"""The judge: an endpoint that answers, fails, is slow or talks nonsense, and what stays of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ovlt.benchmarks import judge as judging
from ovlt.benchmarks.items import Ask
from ovlt.benchmarks.judge import Judge, JudgeRequest
from ovlt.benchmarks.judge_prompts import wording
from ovlt.benchmarks.registry import BENCHMARKS
from ovlt.benchmarks.scoring import RuleSet, ScoredText, open_pool, score
from ovlt.config.benchmark import JudgeConfig
from ovlt.reward.pool import RewardPool

Reply = Callable[[int, dict[str, Any]], tuple[int, str]]  # call, request -> status, body


def said(text: str | None) -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "judge-7b",
                       "choices": [choice]})  # fmt: skip


@contextmanager
def endpoint(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server on a free port; the requests that it was sent."""
    calls: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def _send(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self) -> None:
            entry = {"id": "judge-7b", "object": "model", "created": 0, "owned_by": "us"}
            self._send(200, json.dumps({"object": "list", "data": [entry]}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                calls.append(request)
                number = len(calls)
            self._send(*reply(number, request))

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...  # a client that has given up

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", calls
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with open_pool(1) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_PAUSE_S", 0.001)


ROW = {
    "pid": "1", "question_type": "free_form", "answer_type": "integer", "answer": "12",
    "question": "How many?", "choices": None, "precision": None,
}  # fmt: skip


def texts(count: int) -> list[ScoredText]:
    return [ScoredText(str(i), ROW, f"There are about {12 + i} of them.") for i in range(count)]


def rules(name: str = "mathvista") -> RuleSet:
    return RuleSet(BENCHMARKS[name], "official")


def test_a_reply_is_scored_and_remembered_on_disk(pool: RewardPool, tmp_path: Path) -> None:
    with endpoint(lambda *_: (200, said("12.9"))) as (url, calls):
        first = Judge(JudgeConfig(url=url), tmp_path / "judge.jsonl")
        rulings = score(texts(3), rules(), pool, first.replies)
        assert [r.right for r, _ in rulings] == [True, True, True]
        assert [given for _, given in rulings] == [["12.9"]] * 3
        again = Judge(JudgeConfig(url=url), tmp_path / "judge.jsonl")
        assert score(texts(3), rules(), pool, again.replies) == rulings
    assert len(calls) == 3
    assert (again.asked, again.cached, again.model) == (0, 3, "judge-7b")
    assert calls[0]["temperature"] == 0.0


def test_an_endpoint_that_fails_half_way_leaves_what_was_scored(
    pool: RewardPool, tmp_path: Path
) -> None:
    broken = True

    def half(number: int, _: dict[str, Any]) -> tuple[int, str]:
        return (500, "{}") if broken and number > 4 else (200, said("12"))

    with endpoint(half) as (url, calls):
        config = JudgeConfig(url=url, parallel=1, tries=2)
        judge = Judge(config, tmp_path / "judge.jsonl")
        rulings = score(texts(40), rules(), pool, judge.replies)
        assert sum(bool(r.right) for r, _ in rulings) == 4
        assert sum(r.by == "nobody" for r, _ in rulings) == judge.failed == 36
        assert "36 unjudged (InternalServerError" in judge.report()
        assert len(calls) <= 4 + 2 * judging._GONE  # the rest is not asked
        broken = False
        second = Judge(config, tmp_path / "judge.jsonl")
        rulings = score(texts(40), rules(), pool, second.replies)
        assert all(r.right for r, _ in rulings)
        assert (second.cached, second.failed) == (4, 0)


def test_a_failure_that_passes_is_tried_again(pool: RewardPool, tmp_path: Path) -> None:
    def second_time(number: int, _: dict[str, Any]) -> tuple[int, str]:
        return (503, "busy") if number == 1 else (200, said("12"))

    with endpoint(second_time) as (url, calls):
        judge = Judge(JudgeConfig(url=url), tmp_path / "judge.jsonl")
        [(ruling, _)] = score(texts(1), rules(), pool, judge.replies)
    assert ruling.right
    assert len(calls) == 2


@pytest.mark.parametrize("body", ["no json", "{}", said(None), '{"choices": []}'])
def test_a_reply_that_is_none_counts_as_unjudged(
    pool: RewardPool, tmp_path: Path, body: str
) -> None:
    with endpoint(lambda *_: (200, body)) as (url, _calls):
        judge = Judge(JudgeConfig(url=url, tries=2), tmp_path / "judge.jsonl")
        [(ruling, _)] = score(texts(1), rules(), pool, judge.replies)
    assert ruling.right is None
    assert judge.failed == 1


def test_a_slow_endpoint_is_given_up(pool: RewardPool, tmp_path: Path) -> None:
    def slow(*_: object) -> tuple[int, str]:
        time.sleep(0.5)
        return 200, said("12")

    with endpoint(slow) as (url, _calls):
        judge = Judge(JudgeConfig(url=url, tries=1, timeout=0.05), tmp_path / "judge.jsonl")
        [(ruling, _)] = score(texts(1), rules(), pool, judge.replies)
    assert ruling.by == "nobody"
    assert "APITimeoutError" in judge.report()


def test_nonsense_to_the_second_call_ends_and_stays_open(pool: RewardPool, tmp_path: Path) -> None:
    row = {"answer": "B", "question_for_eval": "Find it.", "sample_index": "1"}
    with endpoint(lambda *_: (200, said("perhaps"))) as (url, calls):
        judge = Judge(JudgeConfig(url=url), tmp_path / "judge.jsonl")
        text = ScoredText("1", row, "B, I think")
        [(ruling, _)] = score([text], rules("mathverse"), pool, judge.replies)
    assert ruling.right is None
    assert ruling.reason == "the judge never said 0 or 1"
    assert len(calls) == 11


def test_no_endpoint_at_all_is_one_sentence(tmp_path: Path) -> None:
    judge = Judge(JudgeConfig(url="http://127.0.0.1:1/v1"), tmp_path / "judge.jsonl")
    with pytest.raises(ValueError, match="does not list its models"):
        judge.replies([JudgeRequest("mathvista", "official", (), "1", ROW, "x", Ask("extract"), 0)])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mathvista", "extract"), ("mathverse", "extract"), ("mathverse", "consistent"),
     ("mathverse", "yes_no"), ("mathvision", "extract"), ("emma", "correct"), ("emma", "short"),
     ("hallusionbench", "conflict"), ("hallusionbench", "yes_or_no"), ("mmmu-pro", "option")],
)  # fmt: skip
def test_every_request_shows_the_response_or_the_extraction(name: str, kind: str) -> None:
    row = {"question": "Q", "answer": "A1", "options": "['x', 'y']", "gt_answer_details": "D"}
    text, tokens = wording(name, kind, row, "the-response", "the-extraction", frozenset())
    assert ("the-extraction" if kind in ("consistent", "yes_no") else "the-response") in text
    assert tokens > 0
