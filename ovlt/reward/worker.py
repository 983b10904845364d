"""The child process that runs a reward: ``python -m ovlt.reward.worker SPEC MEMORY_MB PARENT_PID``.

It writes ``{"ready": true}`` or ``{"fatal": reason}``, then answers each request line with one
reply line. It first moves the pipes away from stdin and stdout, so a reward may print and read.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

from ovlt.reward.functions import RewardFunction, RewardInput
from ovlt.reward.load import check_output, load_reward
from ovlt.reward.symbolic import warm_up

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h: the signal to get when the parent ends
# Longer ones would fill the log of every step.
_MAX_REASON_CHARS = 2000
_MAX_PARTS = 64


def _limit(memory_mb: int, parent: int) -> None:
    """Limit the address space, write no core files, and end with the trainer."""
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the trainer ended before the line above
        os._exit(1)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]


def _reply(reward: RewardFunction, x: RewardInput) -> dict[str, object]:
    try:
        output = reward(x)
    except BaseException as error:  # a reward's sys.exit() concerns this response only
        return {"error": _describe(error)}
    try:
        checked = check_output(output)
    except ValueError as error:
        return {"bad": _describe(error).removeprefix("ValueError: ")}
    parts = dict(list(checked.parts.items())[:_MAX_PARTS])
    return {"score": checked.score, "parts": parts, "reason": checked.reason[:_MAX_REASON_CHARS]}


def main(spec: str, memory_mb: int, parent: int) -> None:
    """Serve until the trainer closes the pipe; then kill whatever the reward left running."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    pid = os.getpid()

    def write(message: dict[str, object]) -> None:
        if os.getpid() != pid:  # a fork that returned from the reward must not answer too
            os._exit(0)
        data = json.dumps(message).encode("ascii") + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    try:
        _limit(memory_mb, parent)
        reward = load_reward(spec)
        warm_up()
    except ValueError as error:
        write({"fatal": str(error)})
        return
    except BaseException as error:
        write({"fatal": f"reward {spec!r} cannot be loaded: {_describe(error)}"})
        return
    write({"ready": True})
    for line in requests:
        request = json.loads(line)
        fields = {**request["input"], "image_paths": tuple(request["input"]["image_paths"])}
        write({**_reply(reward, RewardInput(**fields)), "id": request["id"]})
    if os.getpgrp() == pid:
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
