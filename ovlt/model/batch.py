"""PackedBatch: samples joined end to end without padding, a shared prompt once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovlt.model.segments import Segments, remembered, to_device
from ovlt.model.vision import VisionPlan


@dataclass
class PackedBatch:
    """Samples joined end to end without padding: one micro-batch of one rank.

    Row ``t`` of the per-loss-row tensors belongs to hidden state ``loss_index[t]``, which predicts
    ``labels[t]``. ``loss_weight`` already holds aggregation *and* the normaliser of the whole
    optimizer step, so the loss is the plain weighted sum and is the same for every split of the
    same samples over micro-batches and ranks.

    Samples that share their prompt are laid out as the prompt, once, and their responses: the last
    hidden state of the prompt then predicts the first token of each response, and appears several
    times in ``loss_index``.

    Shapes: T tokens, S samples, R rows that carry loss (R <= T), U tokens whose hidden states these
    read (U <= R), P vision patches, I images.
    """

    input_ids: Tensor  # int64 [T]
    position_ids: Tensor  # int64 [3, T]  M-RoPE: time, height, width; a response goes on from its
    # prompt, and a sample starts at 0
    segments: Segments  # which tokens see which: samples, or prompts with their responses
    sample_ids: Tensor  # int64 [R]  sample of each loss row
    loss_index: Tensor  # int64 [R]  token whose hidden state predicts the label
    labels: Tensor  # int64 [R]
    loss_weight: Tensor  # float32 [R]
    patches: Tensor | None  # [P, channels * temporal * patch * patch], each image once
    feature_index: Tensor | None  # int64 [image tokens]  row of the tower's output for each slot
    grid_thw: Tensor | None  # int64 [I, 3]  (time, height, width) in patches
    vision_plan: VisionPlan | None  # where patches lie and what each of them sees
    # int64 [U]  those of loss_index, each once; None: all tokens are computed to the end
    read_tokens: Tensor | None = None
    image_slots: Tensor | None = None  # int64 [image tokens]  where in the row these slots are
    advantage: Tensor | None = None  # float32 [R]
    engine_logp: Tensor | None = None  # float32 [R]
    old_logp: Tensor | None = None  # float32 [R], once computed
    ref_logp: Tensor | None = None  # float32 [R], once computed
    # What the tower gives, each [features of each image once, H], if it is known: the tower is not
    # run. [0, H] if there is no image.
    features: tuple[Tensor, ...] | None = None
    wants_features: bool = False  # the forward is to put them there
    num_samples: int = 0  # S
    is_filler: bool = False  # runs forward and backward with zero loss weight

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.numel())

    def loss_rows(self, block: slice) -> PackedBatch:
        """The same batch with only some of its loss rows, those of ``block``."""

        def part(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[block]

        return replace(
            self,
            sample_ids=self.sample_ids[block],
            loss_index=self.loss_index[block],
            labels=self.labels[block],
            loss_weight=self.loss_weight[block],
            advantage=part(self.advantage),
            engine_logp=part(self.engine_logp),
            old_logp=part(self.old_logp),
            ref_logp=part(self.ref_logp),
        )

    def keep(self, features: tuple[Tensor, ...] | None) -> None:
        """Take the tower's output in the place of all that only the tower reads."""
        self.features = features
        self.patches = self.grid_thw = self.vision_plan = None

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the batch that is made by now, those of its parts too."""
        plan = self.vision_plan.keywords.values() if self.vision_plan else ()
        values = [*vars(self).values(), *plan]
        for value in values:
            if isinstance(value, Segments):
                yield from value.tensors()
            elif isinstance(value, torch.Tensor):
                yield value
                yield from remembered(value)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with every tensor on ``device``, none of which is waited for."""
        moved: dict[str, Tensor | VisionPlan | Segments] = {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                moved[name] = to_device(value, device)
            elif isinstance(value, VisionPlan | Segments):
                moved[name] = value.to(device)
        return replace(self, **moved)
