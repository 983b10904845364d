"""Liger's fused Triton operations in place of some of transformers' arithmetic, on CUDA.

RMSNorm and SwiGLU of decoder and vision tower, and the decoder's rotation of queries and keys, are
memory-bound chains of small kernels in transformers; Liger (https://arxiv.org/abs/2410.10989) makes
one kernel of each. The modules of one model are given another ``forward``: their parameters keep
names and shapes, and other models in the process stay as they are.

Liger's own patch for this family is not used: it replaces classes for the whole process, and the
function that it wants to replace for M-RoPE is gone from transformers since the axes are put
together in the rotary embedding, where what is left per layer is the plain rotation.
"""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROTATION = "apply_rotary_pos_emb"  # what a decoder layer's attention calls, a global of its module


def wanted(setting: str, device: torch.device) -> bool:
    """Whether ``model.liger`` = 'auto', 'on' or 'off' means Liger on ``device``.

    Raises ValueError when it is 'on' and cannot be.
    """
    why = ""
    if device.type != "cuda":
        why = f"its kernels run on CUDA and the model is on {device.type}"
    elif importlib.util.find_spec("liger_kernel") is None:
        why = "liger-kernel is not installed (requirements/common.txt names the version)"
    if setting == "on" and why:
        raise ValueError(f"model.liger='on', but {why}: use 'auto' or 'off'.")
    return setting != "off" and not why


def apply(model: nn.Module) -> dict[str, int]:
    """Let a transformers Qwen2.5-VL, or a part of one, compute with Liger. Safe to call again.

    Returns how many modules of each kind were changed. Raises RuntimeError where transformers has
    another structure than the one this was written for.
    """
    from transformers.activations import ACT2FN
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

    rotated = _with_global(theirs.Qwen2_5_VLAttention.forward, ROTATION, _rotate)
    forwards: dict[type[nn.Module], Callable[..., Any]] = {
        theirs.Qwen2_5_VLRMSNorm: _rms_norm,
        theirs.Qwen2MLP: _swiglu,
        theirs.Qwen2_5_VLMLP: _swiglu,
        theirs.Qwen2_5_VLAttention: rotated,
    }
    changed = dict.fromkeys((kind.__name__ for kind in forwards), 0)
    for module in model.modules():
        # by isinstance: FSDP2 gives the modules that it shards a class of their own
        for kind, forward in forwards.items():
            if isinstance(module, kind):
                if forward is _swiglu and type(module.act_fn) is not type(ACT2FN["silu"]):
                    raise RuntimeError(
                        f"the MLP's activation is {module.act_fn}, Liger's is SiLU: set "
                        "model.liger='off'"
                    )
                module.forward = types.MethodType(forward, module)
                changed[kind.__name__] += 1
    return changed


# The operations come from their own files: `liger_kernel.ops` may put other implementations
# (CuTe, cuTile) in their place, depending on what else is installed and on the environment.


def _rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """x / rms(x) in float32, rounded, times the weight: the casts of transformers ('llama')."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # In backward the gradient of the output is overwritten with that of the input. Nothing else
    # holds it: what reads a norm here is a matrix product, or the choice of rows for the head.
    in_place = True
    return LigerRMSNormFunction.apply(
        hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", in_place, None
    )


def _swiglu(self: Any, hidden_states: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)). Keeps gate and up alone for backward, which overwrites them.

    They are outputs of matrix products, which nobody else keeps; but a graph may be run backward
    only once (``retain_graph`` would see the gradients in place of the values).
    """
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gated = LigerSiLUMulFunction.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states))
    return self.down_proj(gated)


def _rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """q [1,Hq,T,D] and k [1,Hkv,T,D] turned by cos and sin [1,T,D], in place.

    In place is right: they are views of the projections' outputs, which nobody else reads and no
    product keeps for backward; a recomputation of the layer makes them anew.
    """
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(q, k, cos, sin, None, unsqueeze_dim)


def _with_global(function: Any, name: str, value: Any) -> Callable[..., Any]:
    """A copy of ``function`` that finds ``value`` under the global ``name``.

    So that one model's layers call another rotation, the module's other users their own, and the
    code of a layer is not written out here.
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
