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
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Server:
    """Forks commands, see workers/loop_server.py."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in TORCHRUN}
        self.path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "workers" / "loop_server.py")],
            env=environment | {"PYTHONPATH": self.path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server of commands has died; what it said is above"
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


class Command:
    """One command on one rank or more, each a process with the variables torchrun gives it."""

    def __init__(self, server: Server, module: str, argv: list[str], ranks: int, log: Path):
        self.server = server
        environment: dict[str, str] = {}
        if ranks > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        self.logs, self.pids = [], []
        self.codes: dict[int, int] = {}
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            self.logs.append(log.with_name(f"{log.name}-{rank}.stderr"))
            request = {"module": module, "argv": argv, "env": environment | own}
            self.pids.append(server.ask(request | {"stderr": str(self.logs[-1])}))
        self.deadline = time.monotonic() + TIMEOUT_S

    def stderr(self) -> str:
        return "".join(path.read_text() for path in self.logs)

    def running(self) -> list[int]:
        for pid in self.pids:
            if pid not in self.codes and (code := self.server.ask({"wait": pid})) is not None:
                self.codes[pid] = code
        return [pid for pid in self.pids if pid not in self.codes]

    def wait(self) -> list[int]:
        """The exit status of each rank."""
        while self.running():
            if time.monotonic() > self.deadline:
                self.kill()
                raise TimeoutError(self.stderr()[-6000:])
            time.sleep(0.05)
        return [self.codes[pid] for pid in self.pids]

    def finish(self) -> None:
        """Wait; the command must succeed."""
        assert self.wait() == [0] * len(self.pids), self.stderr()[-6000:]

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
