"""Rewards: a typed function from one response to one score, run where it can be killed.

A reward is ``f(x: RewardInput) -> RewardOutput``. Two are shipped ("answer", "released"); your own
is a file and a function, ``reward = "my_reward.py:score"``:

    from ovlt.reward import RewardInput, RewardOutput

    def score(x: RewardInput) -> RewardOutput:
        right = x.answer in x.response
        return RewardOutput(float(right), {"accuracy": float(right)}, "contains the answer")

``RewardPool`` runs it in worker processes that have a time and a memory limit.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import re
import selectors
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ovlt.grading import extract_answer, grade
from ovlt.reward_process import WorkerProcess

if TYPE_CHECKING:
    from ovlt.config import RewardConfig
    from ovlt.types import Prompt


@dataclass(frozen=True)
class RewardInput:
    """One response with all that is known of its question. ``answer`` is the ground truth."""

    response: str
    answer: str
    question: str = ""
    source: str = ""
    image_paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, response: str, prompt: Prompt) -> RewardInput:
        """A response to ``prompt``, with what the prompt says of its question."""
        return cls(response, prompt.answer, prompt.question, prompt.source, prompt.image_paths)


@dataclass(frozen=True)
class RewardOutput:
    """A finite ``score``, named ``parts`` of it for the log, and a ``reason`` for the reader."""

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_right(self) -> bool:
        """The verdict on the answer: a score may give or take points for the form, so the part
        ``accuracy`` says it where there is one."""
        return self.parts.get("accuracy", self.score) >= 1.0


RewardFunction = Callable[[RewardInput], RewardOutput]


# --- The shipped rewards -------------------------------------------------------------------------

_THINK_ANSWER = re.compile(r"\s*<think>.*</think>.*<answer>.*</answer>\s*", re.DOTALL)
_RELEASED_FORMAT = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def answer_reward(x: RewardInput) -> RewardOutput:
    """1 if the last ``<answer>`` is right, else 0: the binary reward of the OpenVLThinker paper.

    Part ``format`` is 1 when each of the four tags stands once and in order; it never enters the
    score (arXiv 2503.17352v1 uses no format reward).
    """
    well_formed = all(x.response.count(tag) == 1 for tag in _TAGS)
    well_formed = well_formed and _THINK_ANSWER.fullmatch(x.response) is not None
    given = extract_answer(x.response)
    right, reason = (False, "no answer tag") if given is None else grade(given, x.answer)
    return RewardOutput(
        float(right), {"accuracy": float(right), "format": float(well_formed)}, reason
    )


def released_reward(x: RewardInput) -> RewardOutput:
    """0, 0.5 or 1, as the released training code scores, with MathRuler's verdicts as they are.

    The first one-line ``<answer>`` is graded, or the whole response where there is none; a right
    answer loses 0.5 when only blanks stand between ``</think>`` and ``<answer>``. Parts, logged and
    not scored: ``accuracy`` without that loss; ``format``, the released pattern (no text between
    the tags).
    """
    given = extract_answer(x.response, parity=True)
    right, reason = grade(x.response if given is None else given, x.answer, parity=True)
    no_summary = re.search(r"</think>\s*<answer>", x.response) is not None
    score = float(right) - 0.5 * float(right and no_summary)
    well_formed = _RELEASED_FORMAT.fullmatch(x.response) is not None
    parts = {"accuracy": float(right), "format": float(well_formed)}
    return RewardOutput(score, parts, f"{reason}; no summary" if right and no_summary else reason)


def exact_reward(x: RewardInput) -> RewardOutput:
    """1 if the whole response is the answer, blanks apart: for captions with one right form."""
    right = x.response.split() == x.answer.split()
    return RewardOutput(float(right), {"accuracy": float(right)}, "same" if right else "differs")


def soft_overlong_penalty(num_tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """DAPO's length penalty (arXiv 2503.14476, eq. 13), in [-1, 0], to be added to a score.

    0 up to ``max_tokens - cache_tokens`` response tokens, then linear down to -1 at ``max_tokens``,
    -1 beyond. ValueError unless ``0 < cache_tokens <= max_tokens``.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"cache_tokens must lie in 1..max_tokens={max_tokens}, not {cache_tokens}; "
            "it is the length of the ramp before the limit"
        )
    return -min(max((num_tokens - (max_tokens - cache_tokens)) / cache_tokens, 0.0), 1.0)


# --- Loading and checking ------------------------------------------------------------------------

_SHIPPED: dict[str, RewardFunction] = {
    "answer": answer_reward,
    "released": released_reward,
    "exact": exact_reward,
}


def load_reward(spec: str) -> RewardFunction:
    """The reward that ``spec`` names: "answer", "released" or "path/to/file.py:function".

    Runs the file; its folder is put last on ``sys.path`` so that it can import its neighbours.
    ValueError says what is wrong with the name, the file, the function or its signature.
    """
    if spec in _SHIPPED:
        return _SHIPPED[spec]
    path_text, colon, name = spec.rpartition(":")
    if not colon or not path_text or not name:
        raise ValueError(
            f"reward {spec!r} is neither a shipped reward ({', '.join(_SHIPPED)}) nor "
            f"'path/to/file.py:function'{_nearest(spec, list(_SHIPPED))}"
        )
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        beside = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ValueError(f"reward file {path} does not exist{_nearest(path.name, beside)}")
    function = getattr(_run_file(path), name, None)
    if function is None:
        module = vars(sys.modules[_module_name(path)])
        own = [
            key
            for key, value in module.items()
            if inspect.isfunction(value) and value.__module__ == _module_name(path)
        ]
        has = f"it has {', '.join(own)}" if own else "it defines no function"
        raise ValueError(f"reward file {path} has no {name!r}; {has}{_nearest(name, own)}")
    if not callable(function):
        raise ValueError(f"{name!r} in reward file {path} is not a function")
    try:
        inspect.signature(function).bind(RewardInput("", ""))
    except TypeError as error:
        raise ValueError(
            f"{name!r} in reward file {path} must take one argument, a RewardInput: "
            f"def {name}(x: RewardInput) -> RewardOutput ({error})"
        ) from None
    return cast(RewardFunction, function)


def _module_name(path: Path) -> str:
    return f"ovlt_reward_file_{path.stem}"


def _run_file(path: Path) -> Any:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    if spec is None or spec.loader is None:
        raise ValueError(f"reward file {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (at[-1] if at else "?")
        raise ValueError(
            f"reward file {path} fails at line {line} when it is loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    return module


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_output(output: object) -> RewardOutput:
    """``output`` with plain floats and strings; ValueError where it is no valid RewardOutput."""
    if not isinstance(output, RewardOutput):
        raise ValueError(f"a {type(output).__name__} instead of RewardOutput(score, parts, reason)")
    if not isinstance(output.parts, dict) or not all(isinstance(k, str) for k in output.parts):
        raise ValueError("parts must be a dict from names to numbers")
    if not isinstance(output.reason, str):
        raise ValueError(f"reason must be a str, not {type(output.reason).__name__}")
    parts = {key: _finite(f"part {key!r}", value) for key, value in output.parts.items()}
    return RewardOutput(_finite("score", output.score), parts, output.reason)


def _finite(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {repr(value)[:80]}")
    return number


# --- The pool ------------------------------------------------------------------------------------

_START_TIMEOUT_S = 60.0  # a reward file may import much; a start is no fault of any answer
_MAX_FAILED_STARTS = 3
_POLL_S = 0.05  # a worker whose forked child keeps the pipe open dies without an end-of-file


class _Refused(ValueError):
    """A reward that cannot be loaded, told by a worker."""


class RewardPool:
    """Scores responses in ``workers`` processes, each of which may be killed and replaced.

    ``timeout_s`` is the wall-clock limit of one response, ``max_chars`` the length above which one
    scores 0 unseen, ``memory_mb`` the address space of a worker. Counters since the start:
    ``items``, ``timeouts``, ``errors`` (raised, or gave no valid output), ``deaths``, ``too_long``.

    ValueError where the reward cannot be loaded; a response never raises.
    """

    def __init__(
        self,
        spec: str,
        *,
        workers: int = 2,
        timeout_s: float = 5.0,
        max_chars: int = 100_000,
        memory_mb: int = 2048,
    ) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(
                f"a reward pool needs workers >= 1 and timeout_s > 0, not {workers} and {timeout_s}"
            )
        self.spec, self.timeout_s, self.max_chars = spec, timeout_s, max_chars
        self.memory_mb = memory_mb
        self.items = self.timeouts = self.errors = self.deaths = self.too_long = 0
        self._next_id = 0
        self._failed_starts = _MAX_FAILED_STARTS - 1  # the very first failure is the user's mistake
        self._lock = threading.Lock()
        self._workers: list[WorkerProcess] = []
        try:
            for _ in range(workers):
                self._workers.append(self._start())
            while not all(worker.ready for worker in self._workers):
                self._turn({})
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, config: RewardConfig, *, verdict: bool = False) -> RewardPool:
        """The pool that a recipe's [grpo.reward] describes: for training, or for the ``verdict``
        on answers in distillation, validation and held-out measurements."""
        return cls(
            (config.verdict if verdict else "") or config.function,
            workers=config.workers,
            timeout_s=config.timeout,
            max_chars=config.max_chars,
        )

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and all that they started."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def score(self, inputs: list[RewardInput]) -> list[RewardOutput]:
        """One output for each input, in their order; blocks until all are there.

        What goes wrong with a response scores 0.0 with the reason "timeout", "too long",
        "worker died: ...", "error: Type: message" or "bad output: ...".
        """
        with self._lock:
            if not self._workers:
                raise ValueError("this reward pool is closed; make a new one")
            first = self._next_id
            self._next_id += len(inputs)
            done: dict[int, RewardOutput] = {}
            waiting: deque[int] = deque()
            for number, x in enumerate(inputs, first):
                if len(x.response) > self.max_chars:
                    done[number] = RewardOutput(0.0, {}, "too long")
                    self.too_long += 1
                else:
                    waiting.append(number)
            try:
                while len(done) < len(inputs):
                    for at, worker in enumerate(self._workers):
                        if waiting and worker.idle:
                            if worker.death() is None:
                                self._give(worker, waiting[0], inputs[waiting[0] - first])
                                waiting.popleft()
                            else:  # died between two items: nobody's fault
                                self._replace(at)
                    self._turn(done)
            except BaseException:
                for at, worker in enumerate(self._workers):
                    if worker.job is not None:
                        self._replace(at)
                raise
            self.items += len(inputs)
            return [done[first + at] for at in range(len(inputs))]

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self.spec, self.memory_mb, _START_TIMEOUT_S)

    def _replace(self, at: int) -> None:
        self._workers[at].kill()
        self._workers[at] = self._start()

    def _give(self, worker: WorkerProcess, number: int, x: RewardInput) -> None:
        fields = {**asdict(x), "image_paths": [str(path) for path in x.image_paths]}
        worker.send({"id": number, "input": fields})
        worker.job, worker.deadline = number, time.monotonic() + self.timeout_s

    def _turn(self, done: dict[int, RewardOutput]) -> None:
        """Wait for one event, take in what came, and replace whoever is dead or late."""
        # Asked before the pipes are: whoever is dead by now has written all that it will write.
        dead = {at: worker.death() for at, worker in enumerate(self._workers) if not worker.idle}
        with selectors.PollSelector() as selector:
            for at, worker in enumerate(self._workers):
                selector.register(worker.reply_fd, selectors.EVENT_READ, at)
                if worker.has_unsent:
                    selector.register(worker.request_fd, selectors.EVENT_WRITE, at)
            events = selector.select(_POLL_S)
        failed: dict[int, str] = {}
        heard: set[int] = set()
        for key, _ in events:
            heard.add(key.data)
            worker = self._workers[key.data]
            try:
                if key.fd == worker.request_fd:
                    worker.flush()
                else:
                    for message in worker.receive():
                        self._take(worker, message, done)
            except (EOFError, BrokenPipeError):
                failed[key.data] = f"worker died: {worker.wait_death()}"
            except _Refused:
                raise
            except (ValueError, RecursionError):  # something else wrote into its pipe
                failed[key.data] = "bad output: not the protocol of a worker"
        now = time.monotonic()
        for at, worker in enumerate(self._workers):
            if dead.get(at) and at not in heard:
                failed[at] = f"worker died: {dead[at]}"
            elif not worker.idle and now > worker.deadline:
                failed.setdefault(at, "timeout")
        for at, reason in failed.items():
            self._fail(at, reason, done)

    def _take(
        self, worker: WorkerProcess, message: dict[str, Any], done: dict[int, RewardOutput]
    ) -> None:
        if not worker.ready:
            if "fatal" in message:
                self._refuse(str(message["fatal"]))
            worker.ready = message.get("ready") is True
            self._failed_starts = 0
            return
        if worker.job is None or message.get("id") != worker.job:
            raise ValueError("a reply that nobody asked for")
        if "error" in message or "bad" in message:
            kind = "error" if "error" in message else "bad output"
            output = RewardOutput(0.0, {}, f"{kind}: {message.get('error', message.get('bad'))}")
            self.errors += 1
        else:
            output = check_output(
                RewardOutput(message.get("score"), message.get("parts"), message.get("reason"))  # type: ignore[arg-type]
            )
        self._finish(worker, output, done)

    def _refuse(self, why: str) -> None:
        """A worker could not start: try again, unless it is the first or has happened thrice."""
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise _Refused(why)

    def _fail(self, at: int, reason: str, done: dict[int, RewardOutput]) -> None:
        worker = self._workers[at]
        if not worker.ready:
            self._refuse(
                f"the worker for reward {self.spec!r} did not start ({reason}); its own message "
                f"is above, if it had one. If memory is short, raise memory_mb={self.memory_mb}"
            )
        elif worker.job is not None:
            self.timeouts += reason == "timeout"
            self.deaths += reason.startswith("worker died")
            self.errors += reason.startswith("bad output")
            self._finish(worker, RewardOutput(0.0, {}, reason), done)
        self._replace(at)

    @staticmethod
    def _finish(worker: WorkerProcess, output: RewardOutput, done: dict[int, RewardOutput]) -> None:
        assert worker.job is not None
        done[worker.job], worker.job = output, None
