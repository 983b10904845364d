"""What ranks tell each other besides tensors of the model: bytes and JSON, never pickles.

Ranks come here from uneven work: one has longer answers to sample, another a slower disk. So these
wait in a gloo group of their own, with the long limit that ``open_waiting_group`` was given, and
collectives of the training keep a short one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
CPU = torch.device("cpu")  # its back end is gloo, also beside NCCL
# The default group at the time, and the group for long waits beside it.
_waiting: tuple[dist.ProcessGroup | None, dist.ProcessGroup | None] = (None, None)


def open_waiting_group(limit: timedelta) -> None:
    """Make the group for long waits. Collective; for each default group anew."""
    global _waiting
    group = dist.new_group(backend="gloo", timeout=limit)
    assert isinstance(group, dist.ProcessGroup)  # a number only for ranks outside of it
    _waiting = (dist.group.WORLD, group)


def waiting_group() -> dist.ProcessGroup | None:
    """Return the group for long waits; None, which is the default group, if there is none."""
    world, group = _waiting
    return group if world is not None and world is dist.group.WORLD else None


def barrier() -> None:
    """Wait for all ranks, however long they are at work."""
    dist.barrier(group=waiting_group())


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_bytes(payload: bytes, device: torch.device = CPU) -> list[bytes]:
    """Return every rank's payload, in rank order, on every rank. Two collectives on ``device``."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [payload]
    group = waiting_group() if device.type == "cpu" else None
    if device.type != "cpu":  # nobody waits inside NCCL, whose limit is short
        barrier()
    size = torch.tensor([len(payload)], dtype=torch.int64, device=device)
    sizes = torch.empty(world_size, dtype=torch.int64, device=device)
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # torch < 2.13
    gather(sizes, size, group=group)
    longest = int(sizes.max())
    if longest == 0:
        return [b""] * world_size
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    if payload:
        padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    everyone = torch.empty(world_size * longest, dtype=torch.uint8, device=device)
    gather(everyone, padded, group=group)
    rows = everyone.cpu().numpy().reshape(world_size, longest)
    return [row[:n].tobytes() for row, n in zip(rows, sizes.tolist(), strict=True)]


def swap_bytes(outgoing: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
    """Send each rank its part of ``outgoing``; return what each has sent here. One collective.

    ``sizes`` are the lengths of what comes. Through the hosts' memory, where such bytes are.
    """
    sent = torch.frombuffer(bytearray(b"".join(outgoing)) or bytearray(1), dtype=torch.uint8)
    lengths = [len(part) for part in outgoing]
    received = torch.empty(sum(sizes), dtype=torch.uint8)
    dist.all_to_all_single(
        received, sent[: sum(lengths)], list(sizes), lengths, group=waiting_group()
    )
    return [part.numpy().tobytes() for part in received.split(list(sizes))]


def gather_json(value: Any, device: torch.device = CPU) -> list[Any]:
    """Return every rank's JSON-able value, in rank order, on every rank. Collective."""
    payloads = gather_bytes(json.dumps(value).encode(), device)
    return [json.loads(payload) for payload in payloads]


def from_rank_zero(value: T) -> T:
    """Return rank 0's JSON-able value on every rank. Collective."""
    return gather_json(value)[0]


def on_all_ranks(work: Callable[[], T]) -> T:
    """Call ``work`` on every rank; if it fails on one, raise on all, so that none waits.

    Collective; ``work`` itself must call no collective.
    """
    result: T | None = None
    failure = None
    try:
        result = work()
    except Exception as error:
        failure = error
    verdict = None if failure is None else [isinstance(failure, ValueError), str(failure)]
    verdicts = gather_json(verdict)
    if failure is not None:
        raise failure
    for rank, other in enumerate(verdicts):
        if other is not None:
            raise (ValueError if other[0] else RuntimeError)(f"rank {rank}: {other[1]}")
    return cast(T, result)  # no failure, so ``work`` has returned
