"""Liger's fused Triton operations in place of some of transformers' arithmetic, on CUDA.

RMSNorm and SwiGLU of decoder and vision tower, and the decoder's rotation of queries and keys, are
memory-bound chains of small kernels in transformers; Liger (https://arxiv.org/abs/2410.10989) fuses
each into one. The modules of one model get another ``forward``: their parameters keep names and
shapes, and other models in the process do not change.

The file of a family says which of its modules compute with which of these.
"""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ovlt.model.families import ModelFamily


class Norm(Protocol):
    """A module that divides by the root of the mean square."""

    weight: Tensor
    variance_epsilon: float


class ZeroCentredNorm(Protocol):
    """Such a module whose weight is 0 where it changes nothing."""

    weight: Tensor
    eps: float


class GatedMlp(Protocol):
    """A module with the three matrices of SwiGLU."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module


ROTATION = "apply_rotary_pos_emb"  # what a decoder layer's attention calls, a global of its module


def should_apply(setting: str, device: torch.device) -> bool:
    """Return whether ``model.liger`` = 'auto', 'on' or 'off' means Liger on ``device``.

    Raises ValueError if it is 'on' but cannot run there.
    """
    why = ""
    if device.type != "cuda":
        why = f"its kernels run on CUDA and the model is on {device.type}"
    elif importlib.util.find_spec("liger_kernel") is None:
        why = "liger-kernel is not installed (requirements/common.txt names the version)"
    if setting == "on" and why:
        raise ValueError(f"model.liger='on', but {why}: use 'auto' or 'off'.")
    return setting != "off" and not why


def apply(model: nn.Module, family: ModelFamily) -> dict[str, int]:
    """Let a transformers model of ``family``, or a part of one, compute with Liger.

    Safe to call again. Returns how many modules of each class were changed. Raises RuntimeError if
    this transformers has another structure than the one the family's file was written for.
    """
    from transformers.activations import ACT2FN

    forwards = family.model.liger_forwards()
    changed = dict.fromkeys((kind.__name__ for kind in forwards), 0)
    for module in model.modules():
        # isinstance, not type(): FSDP2 gives each sharded module a subclass of its class
        for kind, forward in forwards.items():
            if isinstance(module, kind):
                if forward is swiglu and type(module.act_fn) is not type(ACT2FN["silu"]):
                    raise RuntimeError(
                        f"the MLP's activation is {module.act_fn}, Liger's is SiLU: set "
                        "model.liger='off'"
                    )
                module.forward = types.MethodType(forward, module)
                changed[kind.__name__] += 1
    return changed


# The operations are imported from their own files: `liger_kernel.ops` may substitute other
# implementations (CuTe, cuTile), depending on what is installed and on the environment. They are
# imported inside the functions since Liger and Triton are optional packages.


def rms_norm(self: Norm, hidden_states: Tensor) -> Tensor:
    """Return x / rms(x), computed in float32 and rounded, times the weight.

    These are the casts of transformers; Liger calls them 'llama'.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Backward overwrites the gradient of the output with that of the input. Nothing else uses it:
    # the only readers of a norm here are matrix products and selections of rows, for the last MLP
    # and for the head.
    in_place = True
    return LigerRMSNormFunction.apply(
        hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", in_place, None
    )


def zero_centred_rms_norm(self: ZeroCentredNorm, hidden_states: Tensor) -> Tensor:
    """Return x / rms(x) times 1 + the weight, all in float32, rounded once.

    These are the casts of transformers for such norms; Liger calls them 'gemma'.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(
        hidden_states, self.weight, self.eps, 1.0, "gemma", True, None
    )


def swiglu(self: GatedMlp, hidden_states: Tensor) -> Tensor:
    """Return down(silu(gate(x)) * up(x)); keeps only gate and up, which backward overwrites.

    They are outputs of matrix products, which nothing else keeps. So a graph can be run backward
    only once: with ``retain_graph`` the second run would read gradients where the values were.
    """
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gated = LigerSiLUMulFunction.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states))
    return self.down_proj(gated)


def _rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate q [1, Hq, T, D] and k [1, Hkv, T, D] by cos and sin [1, T, D], in place.

    In place is safe: they are views of the projections' outputs, which nothing else reads and no
    product keeps for backward; recomputing the layer makes them again.
    """
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(q, k, cos, sin, None, unsqueeze_dim)


def _rotate_part(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate the first dimensions of each head, as many as cos and sin have."""
    rest = (cos.shape[-1], q.shape[-1] - cos.shape[-1])
    (q, q_rest), (k, k_rest) = q.split(rest, -1), k.split(rest, -1)
    # Copies: Liger rotates in place, and whole heads.
    q, k = _rotate(q.clone(), k.clone(), cos, sin, unsqueeze_dim)
    return torch.cat([q, q_rest], -1), torch.cat([k, k_rest], -1)


def rotated(forward: types.FunctionType, *, partly: bool = False) -> Callable[..., object]:
    """Return an attention's ``forward`` that rotates queries and keys with Liger."""
    return with_global(forward, ROTATION, _rotate_part if partly else _rotate)


def with_global(function: types.FunctionType, name: str, value: object) -> Callable[..., object]:
    """Return a copy of ``function`` in which the global ``name`` is ``value``.

    One model's layers then call another rotation, other models keep theirs, and the code of a layer
    is not copied here.
    """
    if name not in function.__code__.co_names:
        raise RuntimeError(
            f"{function.__qualname__} of this transformers does not call {name}: model.liger does "
            "not know this version; set model.liger='off'"
        )
    copied = types.FunctionType(
        function.__code__,
        {**function.__globals__, name: value},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
