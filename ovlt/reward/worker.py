"""The child process that runs a reward: ``python -m ovlt.reward.worker SPEC MEMORY_MB PARENT_PID``.

It writes ``{"ready": true, "form": FORM}`` or ``{"fatal": reason}``, then answers each request
line, a list of inputs, with one reply line, a list of outputs. It first moves the pipes away from
stdin and stdout, so a reward may print and read.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import cast

from ovlt.reward.functions import AnyRewardFunction, RewardInput, form_of
from ovlt.reward.load import check_output, load_reward, warm_up

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h: the signal to get when the parent ends
# Longer ones would fill the log of every step.
_MAX_REASON_CHARS = 2000
_MAX_PARTS = 64


Reply = dict[str, object]


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


def _score(reward: AnyRewardFunction, inputs: list[RewardInput], timeout_s: float) -> list[Reply]:
    form = form_of(reward)
    if form == "async":
        function = cast(Callable[[RewardInput], Awaitable[object]], reward)
        return asyncio.run(_score_at_once(function, inputs, timeout_s))
    if form == "batch":
        return _score_list(cast(Callable[[list[RewardInput]], object], reward), inputs)
    return [_score_one(cast(Callable[[RewardInput], object], reward), x) for x in inputs]


def _score_one(reward: Callable[[RewardInput], object], x: RewardInput) -> Reply:
    try:
        return _reply(reward(x))
    except BaseException as error:  # a reward's sys.exit() concerns this response only
        return {"error": _describe(error)}


def _score_list(
    reward: Callable[[list[RewardInput]], object], inputs: list[RewardInput]
) -> list[Reply]:
    """Call a batch reward; if it raises, again with one input at a time, to find the culprit."""
    try:
        outputs = reward(inputs)
    except BaseException as error:
        if len(inputs) == 1:
            return [{"error": _describe(error)}]
        return [reply for x in inputs for reply in _score_list(reward, [x])]
    if not isinstance(outputs, list | tuple) or len(outputs) != len(inputs):
        size = (
            f"{len(outputs)} outputs" if isinstance(outputs, list | tuple) else repr(type(outputs))
        )
        return [{"bad": f"{size} for {len(inputs)} inputs instead of a list of as many"}] * len(
            inputs
        )
    return [_reply(output) for output in outputs]


async def _score_at_once(
    reward: Callable[[RewardInput], Awaitable[object]], inputs: list[RewardInput], timeout_s: float
) -> list[Reply]:
    async def one(x: RewardInput) -> Reply:
        try:
            return _reply(await asyncio.wait_for(reward(x), timeout_s))
        except TimeoutError:
            return {"timeout": True}
        except BaseException as error:
            return {"error": _describe(error)}

    return list(await asyncio.gather(*map(one, inputs)))


def _reply(output: object) -> Reply:
    try:
        checked = check_output(output)
    except ValueError as error:
        return {"bad": _describe(error).removeprefix("ValueError: ")}
    parts = dict(list(checked.parts.items())[:_MAX_PARTS])
    reply: Reply = {"score": checked.score, "parts": parts, "failed": checked.failed}
    return {**reply, "reason": checked.reason[:_MAX_REASON_CHARS]}


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
        warm_up(spec, reward)
    except ValueError as error:
        write({"fatal": str(error)})
        return
    except BaseException as error:
        write({"fatal": f"reward {spec!r} cannot be loaded: {_describe(error)}"})
        return
    write({"ready": True, "form": form_of(reward)})
    for line in requests:
        request = json.loads(line)
        inputs = [
            RewardInput(**{**fields, "image_paths": tuple(fields["image_paths"])})
            for fields in request["inputs"]
        ]
        write({"id": request["id"], "outputs": _score(reward, inputs, request["timeout"])})
    if os.getpgrp() == pid:
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
