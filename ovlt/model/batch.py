"""PackedBatch: samples joined end to end without padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class PackedBatch:
    """Samples joined end to end without padding: one micro-batch of one rank.

    Row ``t`` of the per-loss-row tensors belongs to hidden state ``loss_index[t]``, which predicts
    ``labels[t]``. ``loss_weight`` already holds aggregation *and* the normaliser of the whole
    optimizer step, so the loss is the plain weighted sum and is the same for every split of the
    same samples over micro-batches and ranks.
    """

    input_ids: Tensor  # int64 [T]
    position_ids: Tensor  # int64 [3, T]  M-RoPE: time, height, width, restarting per sample
    cu_seqlens: Tensor  # int32 [S + 1]
    segment_ids: Tensor  # int64 [R]  sample of each loss row
    loss_index: Tensor  # int64 [R]
    labels: Tensor  # int64 [R]
    loss_weight: Tensor  # float32 [R]
    patches: Tensor | None  # float32 [P, channels * temporal * patch * patch], each image once
    feature_index: Tensor | None  # int64 [image tokens]  row of the tower's output for each slot
    grid_thw: Tensor | None  # int64 [I, 3]
    vision_plan: dict[str, Any] | None  # the tower's window order and boundaries, made on the CPU
    max_len: int = 0  # longest sample, tokens
    advantage: Tensor | None = None  # float32 [R]
    engine_logp: Tensor | None = None  # float32 [R]
    old_logp: Tensor | None = None  # float32 [R], once computed
    ref_logp: Tensor | None = None  # float32 [R], once computed
    num_samples: int = 0  # S
    is_filler: bool = False  # runs forward and backward with zero loss weight
    cost: float = 0.0  # FLOPs, text + vision tower, forward

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.numel())

    def rows(self, block: slice) -> PackedBatch:
        """The same batch with only some of its loss rows."""
        names = ("segment_ids", "loss_index", "labels", "loss_weight")
        optional = ("advantage", "engine_logp", "old_logp", "ref_logp")
        kept = {n: v[block] for n in (*names, *optional) if (v := getattr(self, n)) is not None}
        return replace(self, **kept)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with every tensor on ``device``."""
        import torch

        from ovlt.model.attention import to_device

        def move(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return to_device(value, device)
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            return value

        return PackedBatch(**{name: move(value) for name, value in self.__dict__.items()})
