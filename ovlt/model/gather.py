"""Whole tensors out of sharded ones, many in one collective, in the dtype that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

# Of whole tensors that one collective gathers: enough that its latency does not count, and little
# beside the model. A larger tensor has a collective of its own.
BUCKET_BYTES = 256 << 20


class _Part(NamedTuple):
    """A sharded tensor of a bucket."""

    name: str
    value: DTensor

    def chunk(self, ranks: int) -> int:
        """Return the elements of the largest shard, which is that of the first rank."""
        rows = -(-self.value.shape[0] // ranks)
        return rows * self.value.shape[1:].numel()


def whole_tensors(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole tensor) in order. All ranks must iterate (collective).

    Shards are cast to ``dtype`` (None: they stay as they are) before they are gathered, which gives
    the bits that casting afterwards would. At any time this holds one bucket, and a copy of the
    tensor at hand.
    """
    bucket: list[_Part] = []
    size = 0
    for name, tensor in tensors:
        if not _in_buckets(tensor):
            yield from _gathered(bucket, dtype)
            bucket, size = [], 0
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.to(dtype or whole.dtype)
            continue
        bytes_of_it = tensor.numel() * (dtype or tensor.dtype).itemsize
        other_kind = bucket and bucket[0].value.dtype != tensor.dtype
        if bucket and (size + bytes_of_it > BUCKET_BYTES or other_kind):
            yield from _gathered(bucket, dtype)
            bucket, size = [], 0
        assert isinstance(tensor, DTensor)
        bucket.append(_Part(name, tensor))
        size += bytes_of_it
    yield from _gathered(bucket, dtype)


def _in_buckets(tensor: Tensor) -> bool:
    """Return whether a tensor is divided by its rows over one group of ranks, as FSDP does it."""
    return (
        isinstance(tensor, DTensor)
        and tensor.device_mesh.ndim == 1
        and tensor.device_mesh.size() > 1
        and tensor.placements == (Shard(0),)
    )


def _gathered(bucket: list[_Part], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the whole tensors of a bucket: one collective."""
    if not bucket:
        return
    mesh, first = bucket[0].value.device_mesh, bucket[0].value.to_local()
    ranks = mesh.size()
    ends = [0]
    for part in bucket:
        ends.append(ends[-1] + part.chunk(ranks))
    # Shards end to end, each with room for the largest; what the last ranks lack is not read.
    mine = torch.empty(ends[-1], dtype=dtype or first.dtype, device=first.device)
    for part, begin in zip(bucket, ends, strict=False):
        local = part.value.to_local()
        mine[begin : begin + local.numel()].copy_(local.reshape(-1))
    everyone = torch.empty(ranks * ends[-1], dtype=mine.dtype, device=mine.device)
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # torch < 2.13
    gather(everyone, mine, group=mesh.get_group())
    del mine
    by_rank = everyone.view(ranks, -1)
    for part, begin in zip(bucket, ends, strict=False):
        # A copy, unless the tensor is alone: its shards lie apart from each other.
        flat = by_rank[:, begin : begin + part.chunk(ranks)].reshape(-1)
        yield part.name, flat[: part.value.numel()].view(part.value.shape)
