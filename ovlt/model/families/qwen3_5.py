"""Qwen3.5 (dense): packed model, its recurrent layers within segments, the engine's settings.

transformers' own keywords for packed rows do not keep samples apart unless two packages are there:
its plain functions drop them without a word. So the recurrent layers have a forward of ovlt's,
over operations that have boundaries on every device (``delta.py``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from ovlt.model import liger
from ovlt.model.delta import causal_conv, choose_backend, gated_delta
from ovlt.model.families import qwen3_vl
from ovlt.model.families.tiny import tiny_ids, tiny_text, tiny_tower
from ovlt.model.packed_model import PackedModel
from ovlt.model.segments import Segments
from ovlt.model.sizes import Config

if TYPE_CHECKING:
    from ovlt.config import BaseConfig

LAYER_TYPES = frozenset(("full_attention", "linear_attention"))
ROPE_KEYS = frozenset(("mrope_interleaved", "partial_rotary_factor"))
# What a recurrent layer consists of; its forward here reads all of it and nothing else.
PARTS = {
    "A_log", "dt_bias", "conv1d.weight", "norm.weight", "out_proj.weight", "in_proj_qkv.weight",
    "in_proj_z.weight", "in_proj_b.weight", "in_proj_a.weight",
}  # fmt: skip


def by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of transformers that takes its plain form for tensors on a CPU.

    Once fla is installed, transformers takes fla's kernels wherever the tensors are.
    """
    plain = inspect.unwrap(function)

    @functools.wraps(function)
    def chosen(first: Tensor, *args: object, **keywords: object) -> Any:
        return (function if first.is_cuda else plain)(first, *args, **keywords)

    return chosen


# What a model uses that is not packed: the transformers engine.
for _name in (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
):
    setattr(theirs, _name, by_device(getattr(theirs, _name)))


class PackedDeltaNet(theirs.Qwen3_5GatedDeltaNet):
    """A recurrent layer that starts each segment of a packed row anew, or from its prompt."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, *, ovlt_segments: Segments | None = None, **_: object
    ) -> Tensor:
        """Hidden states [1, T, H] -> [1, T, H]."""
        if ovlt_segments is None:
            raise RuntimeError(
                "a recurrent layer was called without segment boundaries: use PackedModel"
            )
        hidden = hidden_states[0]  # [T, H]
        mixed = causal_conv(self.in_proj_qkv(hidden), self.conv1d.weight[:, 0], ovlt_segments)
        q, k, v = mixed.split((self.key_dim, self.key_dim, self.value_dim), -1)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        steps = F.softplus(self.in_proj_a(hidden).to(wide) + self.dt_bias)
        out = gated_delta(
            q.unflatten(1, (self.num_k_heads, self.head_k_dim)),
            k.unflatten(1, (self.num_k_heads, self.head_k_dim)),
            v.unflatten(1, (self.num_v_heads, self.head_v_dim)),
            -self.A_log.to(wide).exp() * steps,  # the logarithm of the decay
            self.in_proj_b(hidden).sigmoid(),
            ovlt_segments,
        )  # [T, heads, head dim]
        gate = self.in_proj_z(hidden).view(-1, self.head_v_dim)
        out = self.norm(out.reshape(-1, self.head_v_dim), gate)
        return self.out_proj(out.view(len(hidden), self.value_dim))[None]


class PackedQwen35(  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    PackedModel, Qwen3_5ForConditionalGeneration
):
    """Qwen3.5 on packed batches."""

    def __init__(self, config: Qwen3_5Config) -> None:
        super().__init__(config)
        text = self.model.language_model.config
        for index, layer in enumerate(self.model.language_model.layers):
            if text.layer_types[index] == "linear_attention":
                layer.linear_attn = PackedDeltaNet(text, index)
                if parts := {n for n, _ in layer.linear_attn.named_parameters()} ^ PARTS:
                    raise ValueError(
                        f"the recurrent layers of this transformers differ in {sorted(parts)} from "
                        "those that ovlt keeps packed samples apart in: install the version that "
                        "requirements/common.txt names"
                    )

    def check_device(self, device: torch.device) -> None:
        """Implement ``PackedModel.check_device``: a GPU needs fla."""
        choose_backend(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


MODEL = PackedQwen35


# The tower is Qwen3-VL's without DeepStack; names and processor are the same.
vision_plan = qwen3_vl.vision_plan
disk_name = qwen3_vl.disk_name
live_name = qwen3_vl.live_name
tiny_processor = qwen3_vl.tiny_processor


def check_config(config: Config) -> str:
    """Implement ``FamilyModel.check_config``."""
    text = cast("Any", config.get_text_config())
    if text.hidden_act != "silu":
        return f"hidden_act '{text.hidden_act}' of text_config: the recurrent layers have 'silu'"
    if not getattr(text, "attn_output_gate", True):
        return "attn_output_gate false: transformers gates the output of attention always"
    if text.linear_num_value_heads % text.linear_num_key_heads:
        return (
            f"linear_num_value_heads {text.linear_num_value_heads} is no multiple of "
            f"linear_num_key_heads {text.linear_num_key_heads}"
        )
    if len(text.layer_types) != text.num_hidden_layers:
        return f"layer_types names {len(text.layer_types)} of {text.num_hidden_layers} layers"
    if not text.rope_parameters.get("mrope_interleaved", True):
        return "mrope_interleaved false: the rotary positions of this family are interleaved"
    return ""


def is_left_out(disk: str) -> bool:
    """Implement ``FamilyModel.is_left_out``: the layer that drafts tokens ahead is not trained."""
    return disk.startswith("mtp.")


def liger_forwards() -> Mapping[type[nn.Module], Callable[..., object]]:
    """Implement ``FamilyModel.liger_forwards``. The recurrent layers' own norm stays as it is."""
    return {
        theirs.Qwen3_5RMSNorm: liger.zero_centred_rms_norm,
        theirs.Qwen3_5MLP: liger.swiglu,
        theirs.Qwen3_5Attention: liger.rotated(theirs.Qwen3_5Attention.forward, partly=True),
    }


def engine_settings(device: torch.device) -> dict[str, object]:
    """Implement ``FamilyModel.engine_settings``.

    vLLM caches prefixes of recurrent layers only with chunked prefill, which seeds rule out on a
    CPU.
    """
    return {"enable_prefix_caching": False} if device.type == "cpu" else {}


def engine_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Implement ``FamilyModel.engine_dtypes``: vLLM's recurrence on a CPU is bfloat16 only."""
    return (torch.bfloat16,) if device.type == "cpu" else (torch.float32, torch.bfloat16)


def tiny(base: BaseConfig, tokenizer: PreTrainedTokenizerFast, rows: int) -> Qwen3_5Config:
    """Implement ``FamilyModel.tiny``."""
    text = tiny_text(base, tokenizer, rows, [3, 3, 2])  # as 11, 11 and 10 of the real ones
    text["rope_parameters"] = cast("dict[str, object]", text["rope_parameters"]) | {
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
    }
    return Qwen3_5Config(
        text_config=text
        | {
            "head_dim": 64,
            "linear_num_key_heads": base.kv_heads,
            "linear_num_value_heads": base.heads,
            "linear_key_head_dim": 64,  # vLLM on a CPU takes 64 and 128
            "linear_value_head_dim": 64,
            "full_attention_interval": min(4, base.layers),
        },
        vision_config={
            **tiny_tower(base),
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [],
        },
        **tiny_ids(tokenizer),
        tie_word_embeddings=base.tie_embeddings,
        architectures=[Qwen3_5ForConditionalGeneration.__name__],
    )
