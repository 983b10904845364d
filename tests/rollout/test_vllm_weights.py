"""Tensors taken out of a model whose matrices are joined and padded, as vLLM's are on CUDA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ovlt.rollout.vllm_weights import weight_of

SENT = {
    "model.embed.weight": torch.randn(5, 4),
    "model.q_proj.weight": torch.randn(4, 4),
    "model.q_proj.bias": torch.randn(4),
    "model.k_proj.weight": torch.randn(2, 4),
    "model.k_proj.bias": torch.randn(2),
    "model.v_proj.weight": torch.randn(2, 4),
    "model.v_proj.bias": torch.randn(2),
    "model.qkv.weight": torch.randn(6, 4),
    "model.patch.weight": torch.randn(3, 1, 2, 2),
}


class Held(nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "qkv": ["qkv"]}  # noqa: RUF012
    hf_to_vllm_mapper = SimpleNamespace(
        apply_list=lambda names: [n.replace("model.", "inner.") for n in names]
    )

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = nn.Module()

        def layer(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Module:
            module = nn.Module()
            module.weight = nn.Parameter(weight.clone())
            module.bias = None if bias is None else nn.Parameter(bias.clone())
            return module

        padded = torch.cat([SENT["model.embed.weight"], torch.zeros(59, 4)])  # to 64 rows
        joined = [
            torch.cat([SENT[f"model.{part}_proj.{kind}"] for part in "qkv"])
            for kind in ("weight", "bias")
        ]
        self.inner.embed = layer(padded)
        self.inner.qkv_proj = layer(*joined)
        self.inner.qkv = layer(SENT["model.qkv.weight"])
        self.inner.patch = layer(SENT["model.patch.weight"].reshape(3, 4))


SHAPES = {name: tensor.shape for name, tensor in SENT.items()}


@pytest.mark.parametrize("name", SENT)
def test_a_tensor_comes_back_in_the_shape_in_which_it_was_sent(name: str) -> None:
    assert torch.equal(weight_of(Held(), name, SHAPES), SENT[name])


def test_a_tensor_without_a_place_is_named() -> None:
    shapes = SHAPES | {"model.gone.weight": torch.Size([2, 2])}
    with pytest.raises(RuntimeError, match=r"no place for model\.gone\.weight"):
        weight_of(Held(), "model.gone.weight", shapes)
