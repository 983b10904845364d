"""A language-model head with its inputs, and every implementation of a task on it that is compared.

Each method of a task takes nothing and returns (value, gradients ...). ``eager`` is plain PyTorch
on all logits; ``floor`` the bare matrix products that no implementation can do without.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import DEVICE, absent
from torch import Tensor

from ovlt_kernels.head import HeadOutput
from ovlt_kernels.linear_logp import linear_logp, linear_logp_reference
from ovlt_kernels.linear_loss import linear_loss

CLIP_LOW, CLIP_HIGH, ENTROPY = 0.2, 0.28, 0.01
TRL_CHUNK = 32_768  # of the vocabulary, as TRL's trainers call it
Results = tuple[Tensor, ...]


def peer(name: str) -> Any:
    """A package that is only compared with, or the reason for having no line of it."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a peer may fail to import in many ways
        return absent(f"{name}: {type(error).__name__}: {error}")


class Head:
    """Random rows and a random head, and a policy that has moved a little since it sampled."""

    def __init__(self, rows: int, width: int, vocab: int, dtype: torch.dtype) -> None:
        random = {"generator": torch.Generator(DEVICE).manual_seed(0), "device": DEVICE}
        x = torch.randn(rows, width, **random)
        w = torch.randn(vocab, width, **random).mul_(1 / width**0.5)
        self.x, self.w = (t.to(dtype).requires_grad_() for t in (x, w))
        self.target = torch.randint(vocab, (rows,), **random)
        self.samples = 8  # responses of equal length, for those who take [batch, length]
        self.advantage = torch.randn(self.samples, **random)
        self.per_row = self.advantage.repeat_interleave(rows // self.samples)
        noise = 0.1 * torch.randn(rows, **random)
        with torch.no_grad():
            self.old = linear_logp(self.x, self.w, self.target).logp + noise

    # ---- tasks: the loss as a function of the head's output --------------------------------------

    def grpo(self, head: HeadOutput, rows: slice) -> Tensor:
        """Clipped policy loss, the mean over all tokens."""
        a = self.per_row[rows]
        ratio = (head.logp - self.old[rows]).exp()
        clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
        return -torch.minimum(ratio * a, clipped * a).sum() / len(self.x)

    def grpo_entropy(self, head: HeadOutput, rows: slice) -> Tensor:
        return self.grpo(head, rows) - ENTROPY * head.entropy.sum() / len(self.x)

    def sft(self, head: HeadOutput, rows: slice) -> Tensor:
        return -head.logp.sum() / len(self.x)

    def gradients(self, loss: Tensor) -> Results:
        return loss.detach(), *torch.autograd.grad(loss, (self.x, self.w))

    # ---- implementations that serve every task ---------------------------------------------------

    def ovlt(self, task: str) -> Results:
        return self.gradients(linear_loss(self.x, self.w, self.target, getattr(self, task))[0])

    def ovlt_logp(self, task: str) -> Results:
        """The composable operator: four products."""
        head = linear_logp(self.x, self.w, self.target, entropy_grad=task == "grpo_entropy")
        return self.gradients(getattr(self, task)(head, slice(None)))

    def eager(self, task: str) -> Results:
        entropy = task == "grpo_entropy"
        head = _all_logits(self.x, self.w, self.target, entropy)
        return self.gradients(getattr(self, task)(HeadOutput(*head), slice(None)))

    def compiled(self, task: str) -> Results:
        head = _compiled()(self.x, self.w, self.target, task == "grpo_entropy")
        return self.gradients(getattr(self, task)(HeadOutput(*head), slice(None)))

    def floor(self, task: str) -> Results:
        """The three products, each as the library makes it, and nothing else."""
        with torch.no_grad():
            dz = self.x @ self.w.t()
            return dz.sum()[None], dz @ self.w, dz.t() @ self.x

    def exact(self, task: str) -> Results:
        """In float64, 512 rows at a time, so that a large vocabulary fits too."""
        x, w = (t.detach().double().requires_grad_() for t in (self.x, self.w))
        total = torch.zeros((), dtype=torch.float64, device=DEVICE)
        for first in range(0, len(x), 512):
            rows = slice(first, first + 512)
            head = linear_logp_reference(x[rows], w, self.target[rows])
            part = getattr(self, task)(head, rows)
            part.backward()
            total += part.detach()
        assert x.grad is not None
        assert w.grad is not None
        return total, x.grad, w.grad

    def by_blocks(self, task: str) -> Results:
        """Plain PyTorch on 2,048 rows at a time, if all logits are too many."""
        total = torch.zeros((), device=DEVICE)
        for first in range(0, len(self.x), 2048):
            rows = slice(first, first + 2048)
            head = HeadOutput(*_all_logits(self.x[rows], self.w, self.target[rows], True))
            part = getattr(self, task)(head, rows)
            part.backward()
            total += part.detach()
        gradients = self.x.grad, self.w.grad
        self.x.grad = self.w.grad = None
        assert gradients[0] is not None
        assert gradients[1] is not None
        return total, gradients[0], gradients[1]

    # ---- peers -----------------------------------------------------------------------------------

    def liger(self, task: str) -> Results:
        if task == "sft":
            if DEVICE.type != "cuda":
                return absent("Liger's fused linear cross-entropy is a Triton kernel: GPU only")
            op = peer("liger_kernel.ops.fused_linear_cross_entropy")
            apply = op.LigerFusedLinearCrossEntropyFunction.apply
            return self.gradients(apply(self.x, self.w, self.target)[0])
        if task != "grpo":
            return absent("Liger's GRPO loss has no entropy bonus")
        module = peer("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss(
            beta=0.0, compiled=DEVICE.type == "cuda", use_ref_model=False, loss_type="bnpo",
            epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH,
        )  # fmt: skip
        shape = (self.samples, -1)
        loss = module(
            self.x.view(*shape, self.x.shape[1]), self.w, self.target.view(shape),
            torch.ones_like(self.target).view(shape), self.advantage,
            old_per_token_logps=self.old.view(shape),
        )  # fmt: skip
        return self.gradients(loss[0])

    def trl(self, task: str) -> Results:
        """Its chunked log-probs and entropy, and the same loss on top."""
        kernels = peer("trl.kernels")
        outputs = ("entropy",) if task == "grpo_entropy" else ()
        logp, entropy, *_ = kernels.ChunkedLogProbFunction.apply(
            self.x, self.w, None, self.target, 1.0, TRL_CHUNK, None, 1.0, outputs
        )
        entropy = logp.detach() if entropy is None else entropy
        loss = getattr(self, task)(HeadOutput(logp, entropy, logp.detach()), slice(None))
        return self.gradients(loss)

    def cce(self, task: str) -> Results:
        """Cut cross-entropy: the task for which it was made, and log-probs for GRPO."""
        if task == "grpo_entropy":
            return absent("cut-cross-entropy gives no entropy")
        function = peer("cut_cross_entropy").linear_cross_entropy
        impl = "cce" if DEVICE.type == "cuda" else "torch_compile"
        if task == "sft":
            return self.gradients(function(self.x, self.w, self.target, impl=impl))
        logp = -function(self.x, self.w, self.target, impl=impl, reduction="none").float()
        return self.gradients(self.grpo(HeadOutput(logp, logp, logp), slice(None)))

    def torch(self, task: str) -> Results:
        """F.linear_cross_entropy, chunked (torch >= 2.13)."""
        if not hasattr(F, "linear_cross_entropy"):
            return absent(f"torch {torch.__version__} has no linear_cross_entropy")
        if task != "sft":
            return absent("F.linear_cross_entropy returns per-token losses in bfloat16")
        options = peer("torch.nn.modules.linear_cross_entropy_options").LinearCrossEntropyOptions()
        return self.gradients(F.linear_cross_entropy(self.x, self.w, self.target, options=options))


IMPLEMENTATIONS = (
    "ovlt", "ovlt_logp", "eager", "compiled", "torch", "liger", "trl", "cce", "floor"
)  # fmt: skip


def _all_logits(x: Tensor, w: Tensor, target: Tensor, with_entropy: bool) -> Results:
    log_p = (x @ w.t()).float().log_softmax(-1)
    logp = log_p.gather(1, target[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1) if with_entropy else torch.zeros_like(logp)
    return logp, entropy, torch.zeros_like(logp)


@functools.cache
def _compiled() -> Callable[..., Results]:
    warnings.filterwarnings("ignore", category=UserWarning)
    return torch.compile(_all_logits, dynamic=False)
