"""Micro-batches are built in order, ahead, a few at a time; no GPU is needed to see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import random_sample, tiny_folder

from ovlt.model.batch import PackedBatch
from ovlt.model.segments import Segments
from ovlt.train import feed as feed_module
from ovlt.train.feed import AHEAD, MicroBatches, joined
from ovlt.train.pack import collate


def numbered(count: int, built: list[int]) -> list[Callable[[], PackedBatch]]:
    """Makers of fillers that differ in their number of samples."""

    def make(i: int) -> PackedBatch:
        built.append(i)
        return replace(collate([], [], config=None, patchify=None), num_samples=i)  # type: ignore[arg-type]

    return [lambda i=i: make(i) for i in range(count)]


def test_a_micro_batch_is_built_at_its_turn_and_kept_on_request() -> None:
    for keep in (True, False):
        built: list[int] = []
        batches = MicroBatches(numbered(3, built), keep=keep)
        assert (len(batches), built) == (3, [])
        for place, batch in enumerate(batches):
            assert batch.num_samples == place == built[-1]
        assert [b.num_samples for b in batches[1:]] == [1, 2]
        assert batches[-1].num_samples == 2
        assert len(built) == (3 if keep else 6)
        assert (batches[0] is batches[0]) == keep


def test_parts_are_joined_without_building_them_and_keep_their_own() -> None:
    built: list[int] = []
    parts = [MicroBatches(numbered(n, built), keep=True) for n in (2, 0, 1)]
    both = joined(parts)
    assert (len(both), built) == (3, [])
    assert [b.num_samples for b in both] == [0, 1, 0]
    assert [b.num_samples for b in both] == [0, 1, 0]
    assert len(built) == 3
    assert both[2] is parts[2][0]


class Stream:
    """A pretended stream of the consumer: what it was told to wait for, and what it has used."""

    def __init__(self) -> None:
        self.waited: list[object] = []
        self.recorded: list[int] = []

    def wait_event(self, event: object) -> None:
        self.waited.append(event)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, to: to.recorded.append(self.data_ptr())
    )

    def copy(_model: object, batch: PackedBatch, _device: object) -> tuple[PackedBatch, Any]:
        return batch, f"copied {batch.num_samples}"

    monkeypatch.setattr(feed_module, "_copy", copy)
    return stream


def fed(batches: MicroBatches) -> Generator[PackedBatch, None, None]:
    return feed_module._copied(None, batches, torch.device("cuda"))  # type: ignore[arg-type]


def test_a_copy_is_waited_for_by_the_stream_and_its_memory_is_held_for_it(stream: Stream) -> None:
    for place, batch in enumerate(fed(MicroBatches(numbered(4, []), keep=True))):
        assert stream.waited == [f"copied {i}" for i in range(place + 1)]
        assert {t.data_ptr() for t in batch.tensors()} <= set(stream.recorded)


def test_few_micro_batches_are_built_ahead(stream: Stream) -> None:
    built: list[int] = []
    for place, _ in enumerate(fed(MicroBatches(numbered(9, built), keep=True))):
        # The model is at work. One batch waits for its turn, and one is made meanwhile.
        expected = list(range(min(9, place + 2 + AHEAD)))
        end = time.monotonic() + 10
        while built != expected and time.monotonic() < end:
            time.sleep(0.005)
        assert built == expected


@pytest.mark.usefixtures("stream")
def test_an_error_comes_at_the_turn_of_its_micro_batch_and_ends_the_thread() -> None:
    makers = numbered(4, [])

    def broken() -> PackedBatch:
        raise ValueError("row 7 is broken")

    makers[2] = broken
    batches = fed(MicroBatches(makers, keep=True))
    assert [next(batches).num_samples for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="row 7 is broken"):
        next(batches)
    batches = fed(MicroBatches(makers, keep=True))
    next(batches)
    batches.close()  # a backward failed
    assert not [t for t in threading.enumerate() if t.name == "ovlt-ahead"]


def test_every_tensor_of_a_batch_is_known_to_be_one(tmp_path: Path) -> None:
    """A tensor that is left out could be overwritten while the model still reads it."""
    folder = tiny_folder(tmp_path / "m")
    rng = np.random.default_rng(0)
    first = random_sample(folder, rng, [(84, 56)], 4)
    second = replace(first, token_ids=first.token_ids.copy())
    second.token_ids[-1] += 1
    batch = collate([first, second], [1.0, 1.0], config=folder.config, patchify=folder.patchify)
    batch.old_logp = batch.ref_logp = torch.zeros(1)
    batch.features = torch.ones(2)
    segments = batch.segments
    _ = segments.cu_seqlens, segments.cu_seqlens_keys, segments.key_index
    _ = segments.equal_calls, segments.buckets
    known = {id(tensor) for tensor in batch.tensors()}
    met: set[int] = set()

    def walk(value: Any) -> None:
        if id(value) in met or isinstance(value, str | int | float | type):
            return
        met.add(id(value))
        if isinstance(value, torch.Tensor):
            assert id(value) in known or any(
                value.data_ptr() == t.data_ptr() for t in batch.tensors()
            )
            walk(getattr(value, "_ovlt_segments", None))
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part)
        elif hasattr(value, "__dict__"):
            for part in vars(value).values():
                walk(part)

    walk(batch)
    assert sum(isinstance(v, Segments) for v in vars(batch).values()) == 1
    assert len(known) > 15
