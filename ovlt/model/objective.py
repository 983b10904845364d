"""What is differentiated: a loss of the head's output, and whether it is a sum over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils._pytree import register_dataclass

from ovlt.model.batch import PackedBatch
from ovlt_kernels.head import HeadOutput


@dataclass
class LossOutput:
    """A loss to differentiate, and numbers to log.

    Attributes:
        loss: scalar; add it over micro-batches and ranks.
        sums: float64 scalars; add each over micro-batches and ranks, then divide by
            ``sums["tokens"]``. Always the same keys, so that ranks can be stacked.
        maxima: float64 scalars; take the largest of micro-batches and ranks.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor] = field(default_factory=dict)


# By this FSDP2 of torch 2.11 finds the tensors that the forward returns, to hook their gradients;
# newer ones look into dataclasses. Without it a root that holds the whole model (``shard`` on a CPU
# with reshard=False) never reduces a gradient, and nothing is learned.
register_dataclass(LossOutput)


@dataclass(frozen=True)
class Objective:
    """A loss function together with what the packed forward needs to know about it.

    Attributes:
        loss: (head output of R rows, batch with these R loss rows) -> LossOutput.
        by_row: the loss is a sum over rows, each a function of its own log-prob and entropy. The
            forward then makes the gradient block by block, without computing the logits a second
            time (``linear_loss``). False for a loss that ties rows together, such as one ratio per
            response (GSPO).
    """

    loss: Callable[[HeadOutput, PackedBatch], LossOutput]
    by_row: bool

    def __call__(self, head: HeadOutput, batch: PackedBatch) -> LossOutput:
        return self.loss(head, batch)
