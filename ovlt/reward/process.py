"""The trainer's handle of one reward worker, a child process that can be killed at any moment.

Requests and replies are lines of ASCII JSON on its stdin and stdout (nothing is pickled). The child
leads its own session, so killing its process group also kills what a reward function has started;
only a process that starts yet another session escapes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# One line of the protocol. Replies are checked by the pool: a reward may write anything.
Message = dict[str, object]

_MAX_REPLY_BYTES = 4 << 20  # a valid reply is far smaller: the worker cuts reasons and parts
_READ_BYTES = 1 << 16  # what a Linux pipe holds


class WorkerProcess:
    """A running ``ovlt.reward.worker``.

    ``job`` holds the ids of the responses that it scores, empty while it has none; ``deadline`` is
    when it must have answered, or started, in seconds of the monotonic clock. The kernel kills the
    child when the *thread* that made this object ends, so a pool that is used from short-lived
    threads starts its workers again in each of them.
    """

    def __init__(self, spec: str, memory_mb: int, start_timeout_s: float) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        # One thread each: native thread pools reserve address space per thread, which is limited.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        command = [sys.executable, "-m", "ovlt.reward.worker", spec, str(memory_mb)]
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.request_fd = self._process.stdin.fileno()
        self.reply_fd = self._process.stdout.fileno()
        os.set_blocking(self.request_fd, False)
        os.set_blocking(self.reply_fd, False)
        self._unsent = b""
        self._received = b""
        self.ready = False
        self.job: tuple[int, ...] = ()
        self.deadline = time.monotonic() + start_timeout_s

    @property
    def has_unsent(self) -> bool:
        """Whether ``flush`` has something to write."""
        return bool(self._unsent)

    @property
    def idle(self) -> bool:
        """Whether it has started and scores nothing."""
        return self.ready and not self.job

    def send(self, message: Message) -> None:
        """Queue one message; call ``flush`` when ``request_fd`` is writable to write it."""
        self._unsent += json.dumps(message, default=str).encode("ascii") + b"\n"

    def flush(self) -> None:
        """Write what the pipe takes without blocking. BrokenPipeError if the child is gone."""
        try:
            self._unsent = self._unsent[os.write(self.request_fd, self._unsent) :]
        except BlockingIOError:
            return

    def receive(self) -> list[Message]:
        """Return the messages that have arrived. EOFError at the end, ValueError if invalid."""
        try:
            data = os.read(self.reply_fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > _MAX_REPLY_BYTES:
            raise ValueError("a reply that is too long")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a reply that is not a JSON object")
        return messages

    def death(self) -> str | None:
        """Return how the child ended ("exit code 3", "SIGSEGV"); None while it runs.

        Does not reap it: the kernel must not reuse its id before ``kill`` has reached its group.
        """
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            ended = os.waitid(os.P_PID, self._process.pid, flags)
        except ChildProcessError:
            return "gone"
        if ended is None:
            return None
        if ended.si_code == os.CLD_EXITED:
            return f"exit code {ended.si_status}"
        return signal.Signals(ended.si_status).name

    def wait_death(self) -> str:
        """Return the ``death`` of a child whose pipe has closed, or "closed its pipe"."""
        for _ in range(20):  # a pipe closes a moment before its process has ended
            if how := self.death():
                return how
            time.sleep(0.005)
        return "closed its pipe"

    def kill(self) -> None:
        """Kill the child and every process of its group."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
