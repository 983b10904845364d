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

import selectors
import threading
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ovlt.reward.functions import RewardInput, RewardOutput
from ovlt.reward.load import check_output
from ovlt.reward.process import WorkerProcess

if TYPE_CHECKING:
    from ovlt.config import RewardConfig


# --- The shipped rewards -------------------------------------------------------------------------


# --- Loading and checking ------------------------------------------------------------------------


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
