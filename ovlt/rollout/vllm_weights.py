"""One tensor at a time out of a vLLM model, under the name and in the shape it was sent in.

vLLM joins some tensors of a model folder (q, k, v; gate, up), pads the vocabulary, and on a CPU
keeps matrices only in the layout of their kernel. Nothing here imports vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def weight_of(model: Any, name: str, shapes: Mapping[str, torch.Size]) -> Tensor:
    """Return what ``model`` holds for the tensor that was sent as ``name``, in the engine's dtype.

    ``shapes`` are those of everything that was sent: they say where a part of a joined tensor lies.
    Raises RuntimeError if the model has no place for that name.
    """
    (inner,) = model.hf_to_vllm_mapper.apply_list([name])
    path, _, kind = inner.rpartition(".")  # kind: weight or bias
    parent, _, leaf = path.rpartition(".")
    rows, first = shapes[name][0], 0
    for joined, parts in model.packed_modules_mapping.items():
        if leaf in parts and leaf != joined:
            before = parts[: parts.index(leaf)]
            first = sum(shapes[_sibling(name, leaf, part)][0] for part in before)
            path = f"{parent}.{joined}"
    try:
        layer = model.get_submodule(path)
        held = _matrix(layer) if kind == "weight" else getattr(layer, kind)
    except AttributeError as error:
        raise RuntimeError(f"the engine has no place for {name}: {error}") from None
    return held[first : first + rows].reshape(shapes[name])


def _sibling(name: str, leaf: str, part: str) -> str:
    """Return the name of another part of the tensor that ``name`` is joined into."""
    head, _, kind = name.rpartition(".")
    return f"{head.removesuffix(leaf)}{part}.{kind}"


def _matrix(layer: Any) -> Tensor:
    """Return the weight of a layer, out of its kernel's layout if that is what the layer uses.

    The product with the identity is exact: all terms of a sum but one are 0.
    """
    if not hasattr(layer, "cpu_linear"):
        return _unpacked(layer)
    size = layer.weight.shape[1] if layer.weight.numel() else layer.input_size
    return layer.cpu_linear(torch.eye(size, dtype=layer.weight.dtype), layer.weight, None).T


def _unpacked(layer: Any) -> Tensor:
    """Return the weight of a layer, of a short convolution too, whose kernel reads a packed one.

    The plain copy that vLLM keeps beside it counts only if the packed one comes from it.
    """
    plain = getattr(layer, "_cpu_unpacked_conv_weight", None)
    if plain is None:
        return layer.weight
    packed = torch.ops._C.causal_conv1d_weight_pack(plain)
    return plain if torch.equal(packed, layer.weight) else layer.weight.reshape(plain.shape)
