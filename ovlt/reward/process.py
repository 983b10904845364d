"""One reward worker as the trainer sees it: a child process that can be killed at any moment.

Lines of ASCII JSON go through its stdin and stdout (nothing is pickled). The child leads a session
of its own, so killing its process group takes along what a reward function has started; only a
process that makes yet another session escapes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_MAX_REPLY_BYTES = 1 << 20
_READ_BYTES = 1 << 16


class WorkerProcess:
    """A started ``ovlt.reward.worker``; busy with ``job`` (an id) until ``deadline`` (monotonic s).

    The kernel kills the child when the *thread* that made this object ends, so a pool that is used
    from a short-lived thread starts its workers anew each time.
    """

    def __init__(self, spec: str, memory_mb: int, start_timeout_s: float) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        # one thread per worker: every native thread pool reserves address space for each thread
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
        self.job: int | None = None
        self.deadline = time.monotonic() + start_timeout_s

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    def send(self, message: dict[str, Any]) -> None:
        """Queue one message; ``flush`` whenever ``request_fd`` is writable sends it."""
        self._unsent += json.dumps(message).encode("ascii") + b"\n"

    def flush(self) -> None:
        """Write what the pipe takes without blocking. BrokenPipeError when the child is gone."""
        try:
            self._unsent = self._unsent[os.write(self.request_fd, self._unsent) :]
        except BlockingIOError:
            return

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived. EOFError at their end, ValueError if they are none."""
        try:
            data = os.read(self.reply_fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > _MAX_REPLY_BYTES:
            raise ValueError("reply without an end")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("reply is not an object")
        return messages

    def death(self) -> str | None:
        """How the child ended ("exit code 3", "SIGSEGV"); None while it lives.

        Leaves it unreaped: until ``kill`` has reached its whole group, its id must not be reused.
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
        """``death`` of a child whose pipe has closed; "closed its pipe" if it lives on."""
        for _ in range(20):
            if how := self.death():
                return how
            time.sleep(0.005)
        return "closed its pipe"

    def kill(self) -> None:
        """End the child and every process of its group, now."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
