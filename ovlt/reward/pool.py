"""Score responses in worker processes that have a time limit and a memory limit."""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from ovlt.reward.functions import Form, RewardInput, RewardOutput
from ovlt.reward.images import ImageFiles
from ovlt.reward.load import checked_output
from ovlt.reward.process import Message, WorkerProcess

if TYPE_CHECKING:
    from ovlt.config import RewardConfig
    from ovlt.types import Prompt

_START_TIMEOUT_S = 60.0  # a reward file may import much, and no response is to blame for that
_MAX_FAILED_STARTS = 3
_GRACE_S = 2.0  # for an async reward, which watches the time of each of its calls itself
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

    A worker scores one response at a time; a batch or async reward gets up to ``config.batch_size``
    of them at once. If such a worker dies or is late, its responses are scored again one by one, so
    that only the culprit is blamed.

    Counters since the start: ``items``, ``timeouts``, ``errors`` (the reward raised or returned no
    valid output), ``deaths`` and ``too_long``.

    Raises ValueError if the reward cannot be loaded; a response never raises.
    """

    def __init__(
        self, config: RewardConfig, *, for_verdicts: bool = False, memory_mb: int = 2048
    ) -> None:
        self.spec = (config.verdict if for_verdicts else "") or config.function
        self.timeout_s, self.max_chars = config.timeout, config.max_chars
        self.max_error_frac, self._batch_size = config.max_error_frac, config.batch_size
        self._form: Form = "single"
        self._images = ImageFiles()
        self.memory_mb = memory_mb
        self.items = self.timeouts = self.errors = self.deaths = self.too_long = 0
        self._next_id = 0
        # A failure of the very first start is the user's mistake: no second try.
        self._failed_starts = _MAX_FAILED_STARTS - 1
        self._lock = threading.Lock()
        self._workers: list[WorkerProcess] = []
        self._waiting = deque[tuple[int, ...]]()  # jobs of the present call
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
        self._images.clear()

    def input_of(self, response: str, prompt: Prompt) -> RewardInput:
        """Return the input for a response to ``prompt``, whose images can be read as files.

        Shipped rewards look at no image, so for them nothing is written.
        """
        x = RewardInput.of(response, prompt)
        if not prompt.images or ":" not in self.spec:
            return x
        return replace(x, image_paths=self._images.paths(prompt))

    def score(self, inputs: list[RewardInput]) -> list[RewardOutput]:
        """Return one output for each input, in order; blocks until all are scored.

        A response that cannot be scored gets 0.0 with the reason "timeout", "too long",
        "worker died: ...", "error: Type: message" or "bad output: ..."; all but "too long" are
        marked as failed.
        """
        with self._lock:
            if not self._workers:
                raise ValueError("this reward pool is closed; make a new one")
            first = self._next_id
            self._next_id += len(inputs)
            done: dict[int, RewardOutput] = {}
            self._waiting = deque[tuple[int, ...]]()
            fresh: list[int] = []
            for number, x in enumerate(inputs, first):
                if len(x.response) > self.max_chars:
                    done[number] = RewardOutput(0.0, {}, "too long")
                    self.too_long += 1
                else:
                    fresh.append(number)
            size = self._job_size(len(fresh))
            self._waiting.extend(tuple(fresh[at : at + size]) for at in range(0, len(fresh), size))
            try:
                while len(done) < len(inputs):
                    for at, worker in enumerate(self._workers):
                        if self._waiting and worker.idle:
                            if worker.death() is None:
                                job = self._waiting.popleft()
                                self._assign(worker, job, [inputs[n - first] for n in job])
                            else:  # died between two responses: neither is to blame
                                self._replace(at)
                    self._wait(done)
            except BaseException:
                for at, worker in enumerate(self._workers):
                    if worker.job:
                        self._replace(at)
                raise
            self.items += len(inputs)
            return [done[first + at] for at in range(len(inputs))]

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self.spec, self.memory_mb, _START_TIMEOUT_S)

    def _replace(self, at: int) -> None:
        self._workers[at].kill()
        self._workers[at] = self._start()

    def _job_size(self, count: int) -> int:
        """Return how many responses a worker gets at once: an equal share, within the limit."""
        if self._form == "single":
            return 1
        return max(1, min(self._batch_size, -(-count // len(self._workers))))

    def _assign(
        self, worker: WorkerProcess, job: tuple[int, ...], inputs: list[RewardInput]
    ) -> None:
        rows = [
            {
                **vars(x),
                "image_paths": [str(path) for path in x.image_paths],
                "extra": dict(x.extra),
            }
            for x in inputs
        ]
        worker.send({"id": job[0], "inputs": rows, "timeout": self.timeout_s})
        seconds = self.timeout_s * (len(job) if self._form == "batch" else 1)
        grace = _GRACE_S if self._form == "async" else 0.0
        worker.job, worker.deadline = job, time.monotonic() + seconds + grace

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
            form = message.get("form")
            self._form = form if form in ("batch", "async") else "single"
            self._failed_starts = 0
            return
        replies = message.get("outputs")
        if not worker.job or message.get("id") != worker.job[0]:
            raise ValueError("a reply to no request")
        if not isinstance(replies, list) or len(replies) != len(worker.job):
            raise ValueError("a reply without an output for each input")
        outputs = [self._output_of(reply) for reply in replies]
        self.timeouts += sum(output.reason == "timeout" and output.failed for output in outputs)
        self.errors += sum(output.reason != "timeout" and output.failed for output in outputs)
        done.update(zip(worker.job, outputs, strict=True))
        worker.job = ()

    @staticmethod
    def _output_of(reply: object) -> RewardOutput:
        if not isinstance(reply, dict):
            raise ValueError("a reply that is not a JSON object")
        if "timeout" in reply:
            return RewardOutput(0.0, {}, "timeout", failed=True)
        for kind, name in (("error", "error"), ("bad", "bad output")):
            if kind in reply:
                return RewardOutput(0.0, {}, f"{name}: {reply[kind]}", failed=True)
        return checked_output(*(reply.get(key) for key in ("score", "parts", "reason", "failed")))

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
        elif len(worker.job) > 1:
            self._waiting.extendleft((number,) for number in reversed(worker.job))
        elif worker.job:
            self.timeouts += reason == "timeout"
            self.deaths += reason.startswith("worker died")
            self.errors += reason.startswith("bad output")
            done[worker.job[0]] = RewardOutput(0.0, {}, reason, failed=True)
        self._replace(at)
