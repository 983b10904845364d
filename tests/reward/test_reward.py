"""Rewards, their loading, and the pool that survives whatever a reward does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ovlt.config import RewardConfig
from ovlt.reward.functions import RewardInput, answer_reward, released_reward, soft_overlong_penalty
from ovlt.reward.load import load_reward
from ovlt.reward.pool import RewardPool

TEN_LINES = """
from ovlt.reward import RewardInput, RewardOutput

def score(x: RewardInput) -> RewardOutput:
    right = x.answer in x.response
    return RewardOutput(float(right), {"accuracy": float(right)}, "contains the answer")
"""

HOSTILE = """
import ctypes, os, subprocess, sys, time
from ovlt.reward import RewardInput, RewardOutput

def ok(reason="fine"):
    return RewardOutput(1.0, {"accuracy": 1.0}, reason)

def score(x):
    kind, _, rest = x.response.partition(" ")
    if kind == "raise": raise KeyError("lost")
    if kind == "exit": sys.exit(3)
    if kind == "die": os._exit(3)
    if kind == "segfault": ctypes.string_at(0)
    if kind == "hang": time.sleep(60)
    if kind == "hang_in_c": 7 ** (10 ** 10)  # no signal handler runs in there
    if kind == "allocate": return ok(str(len(bytearray(4 << 30))))
    if kind == "recurse": return score(RewardInput("recurse " + rest, ""))
    if kind == "print":
        print("{\\"id\\": 0, \\"score\\": 9}")
        os.write(1, b"{}\\n")
        sys.stdin.read()
    if kind == "fork": os.fork()  # both return from here
    if kind == "fork_and_die":
        if os.fork() == 0: time.sleep(60)
        os._exit(4)
    if kind == "child":
        child = subprocess.Popen(["sleep", "60"])
        return ok(str(child.pid))
    if kind == "pid": return ok(str(os.getpid()))
    if kind == "modules":
        return ok(str([m for m in ("torch", "transformers", "vllm") if m in sys.modules]))
    if kind == "meet":  # waits for the other of two calls: only works if both run at once
        open(rest, "w").close()
        while len(os.listdir(os.path.dirname(rest))) < 2: time.sleep(0.01)
    if kind == "echo": return ok(repr(x))
    values = {
        "none": None, "float": 0.5, "nan": RewardOutput(float("nan"), {}, ""),
        "text": RewardOutput("1", {}, ""), "parts": RewardOutput(1, {"a": "b"}, ""),
        "list": RewardOutput(1, [1], ""), "huge": RewardOutput(10 ** 400, {}, ""),
        "reason": RewardOutput(1, {}, None),
    }
    return values[kind] if kind in values else ok()
"""


def pool_of(spec: str, *, workers: int = 2, timeout: float = 5.0, memory_mb: int = 2048):
    config = RewardConfig(function=spec, workers=workers, timeout=timeout)
    return RewardPool(config, memory_mb=memory_mb)


def ask(response: str, answer: str = "5") -> RewardInput:
    return RewardInput(response, answer)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "hostile.py"
    path.write_text(HOSTILE)
    with pool_of(f"{path}:score", timeout=1.0, memory_mb=1024) as pool:
        yield pool


def is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("response", "score", "well_formed", "released"),
    [
        ("<think>a</think> so\n<answer>5</answer>", 1.0, 1.0, 1.0),
        ("<think>a</think>\n<answer>5</answer>", 1.0, 1.0, 0.5),
        ("<think>a</think>\n<answer>6</answer>", 0.0, 1.0, 0.0),
        ("<answer>5</answer>", 1.0, 0.0, 1.0),
        ("<think>a</think> so <answer>\n5\n</answer>", 1.0, 1.0, 0.0),
        ("<think>a</think> <answer>4</answer> <answer>5</answer>", 1.0, 0.0, 0.0),
        ("<answer>5</answer><think></think>", 1.0, 0.0, 1.0),
        ("<think>a</think> so <answer>5</answer> bye", 1.0, 0.0, 1.0),
        ("5", 0.0, 0.0, 1.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_the_shipped_rewards_score_as_their_papers_say(response, score, well_formed, released):
    output = answer_reward(ask(response))
    assert (output.score, output.parts["format"]) == (score, well_formed)
    graded = released_reward(ask(response))
    assert graded.score == released
    assert (graded.parts["accuracy"], graded.is_right) == (float(released > 0), released > 0)


def test_released_reward_keeps_mathrulers_verdicts():
    range_as_subtraction = RewardInput("<answer>2010-2011</answer>", "2011-2012")
    assert answer_reward(range_as_subtraction).score == 0.0
    assert released_reward(range_as_subtraction).score == 1.0


def test_the_overlong_penalty_is_a_ramp_before_the_limit():
    lengths = [0, 80, 85, 90, 100, 101, 500]
    penalties = [soft_overlong_penalty(n, max_tokens=100, cache_tokens=20) for n in lengths]
    assert penalties == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="cache_tokens"):
        soft_overlong_penalty(5, max_tokens=10, cache_tokens=0)


def test_a_ten_line_reward_works_in_the_process_and_in_the_pool(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import neighbour" + TEN_LINES)
    (tmp_path / "neighbour.py").write_text("")
    assert load_reward(f"{path}:score")(ask("it is 5")).score == 1.0
    with pool_of(f"{path}:score", workers=1) as pool:
        assert [o.score for o in pool.score([ask("it is 5"), ask("it is 6")])] == [1.0, 0.0]
        assert pool.items == 2
    with pytest.raises(ValueError, match="closed"):
        pool.score([ask("5")])


@pytest.mark.parametrize(
    ("text", "spec", "says"),
    [
        (None, "anser", r"shipped reward \(answer, .*exact\).*did you mean 'answer'"),
        (None, "mine.py", "path/to/file.py:function"),
        (TEN_LINES, "{folder}/mime.py:score", "does not exist; did you mean 'mine.py'"),
        (TEN_LINES, "{folder}/mine.py:scor", "has no 'scor'; it has score; did you mean 'score'"),
        ("x = 1\n", "{folder}/mine.py:x", "'x' in .*mine.py is not a function"),
        ("x = 1\ndef score(\n", "{folder}/mine.py:score", "mine.py fails at line 2.*SyntaxError"),
        ("\nimport nowhere_to_find\n", "{folder}/mine.py:score", "line 2.*ModuleNotFoundError"),
        ("raise SystemExit(2)\n", "{folder}/mine.py:score", "line 1.*SystemExit"),
        ("def score(a, b): pass\n", "{folder}/mine.py:score", "must take one argument"),
        ("def score(): pass\n", "{folder}/mine.py:score", "must take one argument"),
    ],
)
def test_load_reward_says_what_is_wrong(tmp_path, text, spec, says):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_reward(spec.format(folder=tmp_path))


def test_a_broken_reward_is_told_when_the_pool_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.py does not exist"):
        pool_of(f"{tmp_path}/absent.py:score")
    (tmp_path / "dies.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(ValueError, match=r"did not start.*exit code 7"):
        pool_of(f"{tmp_path}/dies.py:score")
    with pytest.raises(ValueError, match=r"workers\n.*greater than 0"):
        pool_of("answer", workers=0)


def test_a_pool_for_verdicts_judges_by_the_verdict_and_else_by_the_function():
    response = ask("<think>a</think>\n<answer>5</answer>")  # right, without a summary
    config = RewardConfig(function="released", verdict="answer", workers=1)
    for verdict, score in (("answer", 1.0), ("", 0.5)):
        named = config.model_copy(update={"verdict": verdict})
        with RewardPool(named, for_verdicts=True) as pool:
            assert [output.score for output in pool.score([response])] == [score]


FATES = {
    "fine": "fine",
    "raise": "error: KeyError: 'lost'",
    "exit": "error: SystemExit: 3",
    "allocate": "error: MemoryError",
    "recurse": "error: RecursionError",
    "print": "fine",
    "fork": "fine",
    "none": "bad output: a NoneType instead of RewardOutput",
    "float": "bad output: a float instead of RewardOutput",
    "nan": "bad output: score must be a finite number, not nan",
    "huge": "bad output: score must be a finite number",
    "text": "bad output: score must be a finite number, not '1'",
    "parts": "bad output: part 'a' must be a finite number",
    "list": "bad output: parts must be a dict",
    "reason": "bad output: reason must be a str",
}
DEATHS = {
    "die": "worker died: exit code 3",
    "segfault": "worker died: SIGSEGV",
    "fork_and_die": "worker died: exit code 4",
    "hang": "timeout",
    "hang_in_c": "timeout",
}


def test_every_fate_is_one_items_fate_and_order_is_kept(hostile):
    before = (hostile.errors, hostile.deaths, hostile.timeouts, hostile.items)
    fates = {**FATES, **DEATHS}
    kinds = [kind for fate in fates for kind in ("fine", fate)]
    outputs = hostile.score([ask(f"{kind} {at}") for at, kind in enumerate(kinds)])
    for kind, output in zip(kinds, outputs, strict=True):
        assert output.reason.startswith(fates[kind]), (kind, output)
        assert output.score == float(fates[kind] == "fine"), (kind, output)
    errors = sum(fate.startswith(("error", "bad")) for fate in FATES.values())
    after = (hostile.errors, hostile.deaths, hostile.timeouts, hostile.items)
    assert [b - a for a, b in zip(before, after, strict=True)] == [errors, 3, 2, len(kinds)]


def test_text_that_breaks_json_and_lines_arrives_unchanged(hostile):
    x = RewardInput('echo \x00\ud800\n\r\u2028"\\ 字 </answer>', "\udfff", "\n", "s", ("a\n.png",))
    assert hostile.score([x])[0].reason == repr(x)


def test_long_text_is_refused_or_sent_whole(hostile):
    too_long = hostile.too_long
    inputs = [ask("fine " + "\ud83d" * 99_000), ask("fine " + "x" * 100_000)]
    inputs[0] = RewardInput(inputs[0].response, "5", question="q" * 500_000)
    assert [output.reason for output in hostile.score(inputs)] == ["fine", "too long"]
    assert hostile.too_long == too_long + 1
    assert hostile.score([]) == []


def test_a_worker_stays_light(hostile):
    assert hostile.score([ask("modules")])[0].reason == "[]"


def test_a_worker_that_died_between_items_is_nobodys_fault(hostile):
    deaths = hostile.deaths
    for _ in range(2):
        worker = int(hostile.score([ask("pid")])[0].reason)
        os.kill(worker, signal.SIGKILL)
        assert is_gone(worker)
        outputs = hostile.score([ask("fine")] * 4)
        assert [output.reason for output in outputs] == ["fine"] * 4
    assert hostile.deaths == deaths


def test_an_interrupted_call_leaves_no_stale_answer(hostile):
    main = threading.main_thread().ident
    assert main is not None
    # A shell starts background jobs, and so perhaps us, with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            hostile.score([ask("hang"), ask("hang"), ask("hang")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert hostile.score([ask("echo one")])[0].reason == repr(ask("echo one"))


def test_workers_run_at_once_and_closing_ends_their_children(tmp_path):
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    met = tmp_path / "met"
    met.mkdir()
    with pool_of(f"{path}:score", timeout=20) as pool:
        outputs = pool.score([ask(f"meet {met}/a"), ask(f"meet {met}/b")])
        assert [output.reason for output in outputs] == ["fine", "fine"]
        before = list(pool._workers)
        assert [output.reason for output in pool.score([ask("fork")] * 4)] == ["fine"] * 4
        assert [output.reason for output in pool.score([ask("fine")] * 4)] == ["fine"] * 4
        assert pool._workers == before  # the forks neither answered nor took a question
        child = int(pool.score([ask("child")])[0].reason)
        worker = int(pool.score([ask("pid")])[0].reason)
        assert Path(f"/proc/{child}").exists()
    assert is_gone(child)
    assert is_gone(worker)


def test_workers_die_with_the_trainer(tmp_path):
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    code = f"""
import os, signal, threading
from ovlt.config import RewardConfig
from ovlt.reward import RewardInput
from ovlt.reward.pool import RewardPool
pool = RewardPool(RewardConfig(function={str(path)!r} + ":score", workers=2, timeout=60))
both = [RewardInput("meet {tmp_path}/m/a", ""), RewardInput("meet {tmp_path}/m/b", "")]
os.mkdir("{tmp_path}/m")
pool.score(both)
print(*(worker._process.pid for worker in pool._workers), flush=True)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
pool.score([RewardInput("hang_in_c", "")])
"""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    # ends when the last worker lets go of stderr
    trainer = subprocess.run(
        command, capture_output=True, text=True, cwd=root, check=False, timeout=30
    )
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    pids = [int(pid) for pid in trainer.stdout.split()]
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)
