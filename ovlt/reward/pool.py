"""Score responses in worker processes that have a time limit and a memory limit."""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING

from ovlt.reward.functions import RewardInput, RewardOutput
from ovlt.reward.load import checked_output
from ovlt.reward.process import Message, WorkerProcess

if TYPE_CHECKING:
    from ovlt.config import RewardConfig

_START_TIMEOUT_S = 60.0  # a reward file may import much, and no response is to blame for that
_MAX_FAILED_STARTS = 3
_POLL_S = 0.05  # a dead worker whose forked child keeps the pipe open sends no end-of-file


class _Refused(ValueError):
    """A worker reports that the reward cannot be loaded."""


class RewardPool:
    """Scores responses in processes, each of which may be killed and replaced.

    ``config`` is the recipe's ``[reward]``: the function, the number of ``workers``, the
    ``timeout`` of one response in seconds, and ``max_chars``, above which a response scores 0
    without being read. With ``for_verdicts`` the pool judges answers (distillation, validation,
    held-out questions) by ``config.verdict`` in place of the function that training rewards.
    ``memory_mb`` limits the address space of each worker.

    Counters since the start: ``items``, ``timeouts``, ``errors`` (the reward raised or returned no
    valid output), ``deaths`` and ``too_long``.

    Raises ValueError if the reward cannot be loaded; a response never raises.
    """

    def __init__(
        self, config: RewardConfig, *, for_verdicts: bool = False, memory_mb: int = 2048
    ) -> None:
        self.spec = (config.verdict if for_verdicts else "") or config.function
        self.timeout_s, self.max_chars = config.timeout, config.max_chars
        self.memory_mb = memory_mb
        self.items = self.timeouts = self.errors = self.deaths = self.too_long = 0
        self._next_id = 0
        # A failure of the very first start is the user's mistake: no second try.
        self._failed_starts = _MAX_FAILED_STARTS - 1
        self._lock = threading.Lock()
        self._workers: list[WorkerProcess] = []
        try:
            for _ in range(config.workers):
                self._workers.append(self._start())
            while not all(worker.ready for worker in self._workers):
                self._wait({})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and the processes that they started."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def score(self, inputs: list[RewardInput]) -> list[RewardOutput]:
        """Return one output for each input, in order; blocks until all are scored.

        A response that cannot be scored gets 0.0 with the reason "timeout", "too long",
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
                                self._assign(worker, waiting[0], inputs[waiting[0] - first])
                                waiting.popleft()
                            else:  # died between two responses: neither is to blame
                                self._replace(at)
                    self._wait(done)
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

    def _assign(self, worker: WorkerProcess, number: int, x: RewardInput) -> None:
        fields = {**asdict(x), "image_paths": [str(path) for path in x.image_paths]}
        worker.send({"id": number, "input": fields})
        worker.job, worker.deadline = number, time.monotonic() + self.timeout_s

    def _wait(self, done: dict[int, RewardOutput]) -> None:
        """Wait for one event, accept the replies, and replace the workers that are dead or late."""
        # Before the pipes are read: a worker that is dead now has written everything it will write.
        dead = {at: worker.death() for at, worker in enumerate(self._workers) if not worker.idle}
        with selectors.PollSelector() as selector:
            for at, worker in enumerate(self._workers):
                selector.register(worker.reply_fd, selectors.EVENT_READ, at)
                if worker.has_unsent:
                    selector.register(worker.request_fd, selectors.EVENT_WRITE, at)
            events = selector.select(_POLL_S)
        failed: dict[int, str] = {}
        active: set[int] = set()
        for key, _ in events:
            active.add(key.data)
            worker = self._workers[key.data]
            try:
                if key.fd == worker.request_fd:
                    worker.flush()
                else:
                    for message in worker.receive():
                        self._accept(worker, message, done)
            except (EOFError, BrokenPipeError):
                failed[key.data] = f"worker died: {worker.wait_death()}"
            except _Refused:
                raise
            except (ValueError, RecursionError):  # something else wrote into its pipe
                failed[key.data] = "bad output: not the protocol of a worker"
        now = time.monotonic()
        for at, worker in enumerate(self._workers):
            if dead.get(at) and at not in active:
                failed[at] = f"worker died: {dead[at]}"
            elif not worker.idle and now > worker.deadline:
                failed.setdefault(at, "timeout")
        for at, reason in failed.items():
            self._fail(at, reason, done)

    def _accept(
        self, worker: WorkerProcess, message: Message, done: dict[int, RewardOutput]
    ) -> None:
        if not worker.ready:
            if "fatal" in message:
                self._count_failed_start(str(message["fatal"]))
            worker.ready = message.get("ready") is True
            self._failed_starts = 0
            return
        if worker.job is None or message.get("id") != worker.job:
            raise ValueError("a reply to no request")
        if "error" in message or "bad" in message:
            kind = "error" if "error" in message else "bad output"
            output = RewardOutput(0.0, {}, f"{kind}: {message.get('error', message.get('bad'))}")
            self.errors += 1
        else:
            output = checked_output(
                message.get("score"), message.get("parts"), message.get("reason")
            )
        self._finish(worker, output, done)

    def _count_failed_start(self, reason: str) -> None:
        """Raise if this is the third failed start in a row, or the very first start failed."""
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise _Refused(reason)

    def _fail(self, at: int, reason: str, done: dict[int, RewardOutput]) -> None:
        worker = self._workers[at]
        if not worker.ready:
            self._count_failed_start(
                f"the worker for reward {self.spec!r} did not start ({reason}); its own message "
                f"is above, if it had one. It may use {self.memory_mb} MB of address space"
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
