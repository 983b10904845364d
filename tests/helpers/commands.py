"""Commands as a user starts them: processes on one rank or more, waited for, killed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = REPOSITORY / "tests" / "workers"
TIMEOUT_S = 600  # of one command; the slowest, a whole cycle, takes 40 s on an idle machine
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """The variables of a process started by hand: our sources and helpers, and no torchrun's."""
    path = os.pathsep.join(str(REPOSITORY / name) for name in ("", "kernels", "tests"))
    ours = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return {k: v for k, v in os.environ.items() if k not in TORCHRUN} | ours


class Server:
    """A process that forks commands, see workers/fork_server.py. It starts with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, object]) -> int | None:
        """Return the answer to one request: a process id, or an exit status."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKERS / "fork_server.py")],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server of commands has died; its message is above"
        return json.loads(answer)

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)


class Command:
    """One command on one rank or more, each a process with the variables torchrun gives it.

    ``target`` is a module or the path of a script. The ranks write to ``LOG-RANK.stdout`` and
    ``LOG-RANK.stderr``.
    """

    def __init__(self, server: Server, target: str, argv: list[str], ranks: int, log: Path):
        self.server = server
        variables: dict[str, str] = {}
        if ranks > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        self.logs = [log.with_name(f"{log.name}-{rank}") for rank in range(ranks)]
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}
        for rank, log_of_rank in enumerate(self.logs):
            ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            request: dict[str, object] = {"target": target, "argv": argv, "env": variables | ranked}
            for stream in ("stdout", "stderr"):
                request[stream] = f"{log_of_rank}.{stream}"
            pid = server.ask(request)
            assert pid is not None
            self.pids.append(pid)
        self.deadline = time.monotonic() + TIMEOUT_S

    def stdout(self) -> str:
        return "".join(Path(f"{log}.stdout").read_text() for log in self.logs)

    def stderr(self) -> str:
        return "".join(Path(f"{log}.stderr").read_text() for log in self.logs)

    def running(self) -> list[int]:
        """Return the ids of the processes that have not ended."""
        for pid in self.pids:
            if pid not in self.codes and (code := self.server.ask({"wait": pid})) is not None:
                self.codes[pid] = code
        return [pid for pid in self.pids if pid not in self.codes]

    def wait(self) -> list[int]:
        """Return the exit status of each rank."""
        while self.running():
            if time.monotonic() > self.deadline:
                self.kill()
                raise TimeoutError(self.stderr()[-6000:])
            time.sleep(0.05)
        return [self.codes[pid] for pid in self.pids]

    def finish(self) -> None:
        """Wait; the command must succeed."""
        assert self.wait() == [0] * len(self.pids), self.stderr()[-6000:]

    def refusal(self) -> str:
        """Wait; the command must end in a mistake of the user. Return its message."""
        assert self.wait() == [1] * len(self.pids), self.stderr()[-6000:]
        assert "Traceback" not in self.stderr()
        return self.stderr()

    def kill_when(self, condition: Callable[[], object]) -> None:
        """SIGKILL every process of the command, its children too, once ``condition`` holds."""
        while not condition():
            assert len(self.running()) == len(self.pids), self.stderr()[-6000:]
            assert time.monotonic() < self.deadline
            time.sleep(0.002)
        self.kill()

    def kill(self) -> None:
        tree = [psutil.Process(pid) for pid in self.running()]
        for process in [*tree, *(c for p in tree for c in p.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while self.running():
            time.sleep(0.01)
