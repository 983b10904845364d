"""The child process that runs a reward: ``python -m ovlt.reward.worker SPEC MEMORY_MB PARENT_PID``.

Says ``{"ready": true}`` or ``{"fatal": why}``, then answers each request line with one reply line.
The pipe is first moved away from stdin and stdout, so a reward may print (to stderr) or read.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

from ovlt.reward.functions import RewardFunction, RewardInput
from ovlt.reward.grading import warm_up
from ovlt.reward.load import check_output, load_reward

_PR_SET_PDEATHSIG = 1
_MAX_REASON_CHARS = 2000
_MAX_PARTS = 64


def _limit(memory_mb: int, parent: int) -> None:
    """Bound the address space, write no core files, and die with the trainer."""
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]


def _answer(reward: RewardFunction, request: dict[str, Any]) -> dict[str, Any]:
    fields = {**request["input"], "image_paths": tuple(request["input"]["image_paths"])}
    try:
        output = reward(RewardInput(**fields))
    except BaseException as error:  # a reward's sys.exit() is a fault of that item only
        return {"error": _describe(error)}
    try:
        checked = check_output(output)
    except ValueError as error:
        return {"bad": _describe(error).removeprefix("ValueError: ")}
    parts = dict(list(checked.parts.items())[:_MAX_PARTS])
    return {"score": checked.score, "parts": parts, "reason": checked.reason[:_MAX_REASON_CHARS]}


def main(spec: str, memory_mb: int, parent: int) -> None:
    """Serve until the trainer closes the pipe; then end whatever the reward left running."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    own = os.getpid()

    def say(message: dict[str, Any]) -> None:
        if os.getpid() != own:  # a fork that returned from the reward: it must not answer as well
            os._exit(0)
        data = json.dumps(message).encode("ascii") + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    try:
        _limit(memory_mb, parent)
        reward = load_reward(spec)
        warm_up()
    except ValueError as error:
        say({"fatal": str(error)})
        return
    except BaseException as error:
        say({"fatal": f"reward {spec!r} cannot be loaded: {_describe(error)}"})
        return
    say({"ready": True})
    for line in requests:
        request = json.loads(line)
        say({**_answer(reward, request), "id": request["id"]})
    if os.getpgrp() == own:
        os.killpg(own, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
