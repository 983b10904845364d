"""Started by tests/model/test_liger.py, for a CPU with TRITON_INTERPRET=1, which must be set before
Triton is imported: runs parts of a tiny model with transformers' own modules and with Liger's
operations, and saves outputs, gradients and the names of the operations in the graph."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from helpers.tiny import random_sample
from safetensors.torch import save_file
from torch import Tensor
from triton.runtime import interpreter

from ovlt.config import ModelConfig, RunConfig
from ovlt.model import liger
from ovlt.model.families import family_of
from ovlt.model.load import open_folder
from ovlt.model.packed_model import empty_model, fill_buffers
from ovlt.model.parallel import load_sharded
from ovlt.model.segments import Segments
from ovlt.model.weights import read_weights
from ovlt.system.runtime import running
from ovlt.train.pack import collate

TOKENS, PATCHES = 5, 4  # few: each is a program of every kernel
DEVICE = torch.device(sys.argv[3])


@triton.jit
def rsqrt(x):
    return 1 / tl.sqrt(x)


def mend_the_interpreter() -> None:
    """Two things that Liger 0.8.5 asks of Triton and its interpreter lacks.

    Methods on a float argument (``eps.to(tl.float32)``), and libdevice's rsqrt.
    """
    convert = interpreter._implicit_cvt

    def convert_floats_too(value: Any) -> Any:
        if isinstance(value, float):
            handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(value)

    interpreter._implicit_cvt = convert_floats_too
    from liger_kernel.ops import rms_norm

    rms_norm.rsqrt = rsqrt


def tiny_model(folder: Path, checkpointing: bool) -> Any:
    opened = open_folder(folder)
    model: Any = empty_model(opened.config)
    model.to_empty(device=DEVICE)
    model.tie_weights()
    fill_buffers(model, DEVICE)
    read_weights(model, opened.path)
    model.set_head(banned=opened.banned)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:  # all ones in a new model: nothing to tell apart
                parameter.add_(0.3 * torch.randn(parameter.shape).to(DEVICE))
    return model


def decoder(model: Any, hidden: Tensor) -> Tensor:
    """One layer over two segments, at positions whose three axes differ."""
    text = model.model.language_model
    positions = torch.stack([torch.arange(TOKENS) * n // 2 for n in (1, 2, 3)])[:, None].to(DEVICE)
    return text.layers[-1](
        hidden[None],
        position_embeddings=text.rotary_emb(hidden[None], positions),
        ovlt_segments=Segments([2, TOKENS - 2], device=DEVICE),
    )[0]


def tower(model: Any, patches: Tensor) -> Tensor:
    """One block, and the merger's norm."""
    visual = model.model.visual
    head_dim = model.config.vision_config.hidden_size // model.config.vision_config.num_heads
    angles = torch.arange(PATCHES * head_dim).reshape(PATCHES, head_dim) / 10.0
    hidden = visual.blocks[0](
        patches,
        cu_seqlens=torch.tensor([0, 1, PATCHES], dtype=torch.int32, device=DEVICE),
        position_embeddings=(angles.cos().to(DEVICE), angles.sin().to(DEVICE)),
    )
    return visual.merger(hidden)


def in_half(model: Any) -> dict[str, Tensor]:
    """Norm, MLP and rotation alone in float16, the 16-bit type that the interpreter rounds."""
    layer = model.model.language_model.layers[-1].half()
    norm, mlp, attention = layer.input_layernorm, layer.mlp, layer.self_attn
    mlp.gate_proj = mlp.up_proj = mlp.down_proj = torch.nn.Identity()
    generator = torch.Generator().manual_seed(3)
    x = (2 * torch.randn(TOKENS, 64, generator=generator)).to(DEVICE, torch.float16)
    q, k = (2 * torch.randn(2, 1, 3, TOKENS, 32, generator=generator)).to(DEVICE, torch.float16)
    angles = torch.randn(1, TOKENS, 16, generator=generator).repeat(1, 1, 2)
    rotate = attention.forward.__func__.__globals__[liger.ROTATION]
    with torch.no_grad():
        turned = rotate(q, k, *(x.to(DEVICE, torch.float16) for x in (angles.cos(), angles.sin())))
        return dict(zip(("norm", "mlp", "q", "k"), (norm(x), mlp(x), *turned), strict=True))


def whole(folder: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    """Log-probs and gradients of the sharded model, as ``load_sharded`` makes it with and without.

    On a CPU "auto" means no Liger, so there the question is answered for CUDA.
    """
    opened = open_folder(folder)
    rng = np.random.default_rng(4)
    samples = [random_sample(opened, rng, [], n) for n in (2, 1)]
    batch = collate(samples, [1.0, 1.0], config=opened.config, patchify=opened.patchify).to(DEVICE)
    values: dict[str, Tensor] = {}
    if DEVICE.type == "cpu":
        decide = liger.should_apply
        liger.should_apply = lambda setting, _: decide(setting, torch.device("cuda"))
    with running("test", RunConfig(device=DEVICE.type)) as runtime:
        for name, setting in (("plain", "off"), ("liger", "auto")):
            config = ModelConfig(liger=setting)
            model = load_sharded(opened, runtime.mesh, DEVICE, config, dtype=torch.float32)
            head = model(batch)
            facts[f"{name}/whole"] = operations(head.logp)
            (head.logp.sum() + head.entropy.sum()).backward()
            key = f"{name}/whole"
            values |= {f"{key}/out": head.logp.detach(), f"{key}/entropy": head.entropy.detach()}
            for parameter_name, parameter in model.named_parameters():
                values[f"{key}/{parameter_name}"] = parameter.grad.full_tensor()
    return values


def operations(output: Tensor) -> list[str]:
    """Names of Liger's operations in the graph behind ``output``."""
    found, todo, seen = set(), [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(node.name())
        todo += [upstream for upstream, _ in node.next_functions]
    return sorted(name for name in found if "Liger" in name)


def main(folder: Path, results: Path) -> None:
    if DEVICE.type == "cpu":
        mend_the_interpreter()
    values: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for name in ("plain", "liger", "checkpointed"):
        torch.manual_seed(1)
        calls: list[int] = []
        model = tiny_model(folder, checkpointing=name == "checkpointed")
        before = list(model.state_dict())
        if name != "plain":
            facts["changed"] = liger.apply(model, family_of(model.config))
        assert list(model.state_dict()) == before
        mlp = model.model.language_model.layers[-1].mlp
        mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        for part, width in ((decoder, 64), (tower, 48)):
            if name == "checkpointed" and part is tower:
                continue
            generator = torch.Generator().manual_seed(2)
            x = torch.randn(TOKENS if part is decoder else PATCHES, width, generator=generator)
            leaf = x.to(DEVICE).requires_grad_()
            out = part(model, leaf)
            key = f"{name}/{part.__name__}"
            facts[key] = operations(out)
            upstream = torch.randn(out.shape, generator=generator).to(DEVICE)
            out.backward(upstream)
            assert leaf.grad is not None
            values |= {f"{key}/out": out.detach().clone(), f"{key}/input": leaf.grad}
            for parameter_name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    values[f"{key}/{parameter_name}"] = parameter.grad
                    parameter.grad = None
        facts[f"{name}/calls"] = len(calls)
        if name != "checkpointed":
            halves = {k: v.contiguous() for k, v in in_half(model).items()}
            values |= {f"{name}/half/{k}": v for k, v in halves.items()}
    untouched = empty_model(open_folder(folder).config)
    facts["untouched"] = not any("forward" in vars(m) for m in untouched.modules())
    values |= whole(folder, facts)
    save_file(values, results / "values.safetensors")
    (results / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
