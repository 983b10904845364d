"""The Triton row passes: interpreted on a CPU against the float64 statement, and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from safetensors.torch import load_file, save_file
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ovlt_kernels import row_logp_triton
from ovlt_kernels.row_logp import row_logp_reference

TESTS = Path(__file__).resolve().parents[1]
# name -> rows, vocab, dtype, temperature
CASES = {
    "one": (3, 1, torch.float32, 1.0),
    "odd": (5, 37, torch.float32, 0.6),
    "ragged": (3, 4099, torch.float32, 1.3),
    "blocks": (2, 8192, torch.bfloat16, 1.0),
    "half": (3, 301, torch.float16, 0.7),
    "offset": (4, 1003, torch.float32, 1.0),
    "banned": (4, 5003, torch.float32, 0.9),
    "certain": (2, 211, torch.float32, 1.0),
    "none": (0, 19, torch.float32, 1.0),
}


def make(name: str) -> dict[str, Tensor]:
    rows, vocab, dtype, temperature = CASES[name]
    generator = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(rows, vocab, generator=generator)
    target = torch.randint(vocab, (rows,), generator=generator)
    if name == "offset":
        logits += torch.tensor([1e4, -1e4, 300.0, -300.0])[:, None]
    if name == "banned":  # a whole first block, and everything but a few
        logits[0, :4096] = -torch.inf
        logits[1:, 5:] = -torch.inf
        target = torch.tensor([5000, 1, 2, 4])
    if name == "certain":
        logits[range(rows), target] += 60
    g, h = torch.randn(2, rows, generator=generator)
    if name == "blocks":
        logits[1], g[1], h[1] = torch.nan, 0.0, 0.0
    if rows > 2:
        g[1] = h[1] = h[2] = 0.0
    values = {"logits": logits.to(dtype), "target": target, "g": g, "h": h}
    per_row = torch.full((rows,), temperature, dtype=torch.float64)
    if name == "odd":
        per_row[1:] = torch.tensor([0.3, 1.0, 1.7, 2.5])
    return values | {"temperature": per_row, "inv_temperature": (1 / per_row).float()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    home = tmp_path_factory.mktemp("triton")
    save_file({f"{n}/{k}": v for n in CASES for k, v in make(n).items()}, home / "cases")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS.parent / "kernels")])
    done = subprocess.run(
        [sys.executable, TESTS / "workers" / "triton_worker.py", home / "cases", home / "results"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(home / "results")


def statement(case: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Statistics and the gradient of the logits by autograd, computed in ``dtype``."""
    leaf = case["logits"].to(dtype).requires_grad_()
    t = case["temperature"]
    logp, entropy, lse = row_logp_reference(leaf, case["target"], t)
    loss = (logp * case["g"]).sum() + (entropy * case["h"]).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    dead = (case["g"] == 0) & (case["h"] == 0)
    gradient = gradient.masked_fill(dead[:, None], 0.0)  # even of rows that hold NaN
    return [value.detach() for value in (logp, entropy, lse, gradient)]


@pytest.mark.parametrize("name", CASES)
def test_errs_at_most_twice_what_plain_pytorch_does(name: str, results: dict[str, Tensor]) -> None:
    case = make(name)
    exact, plain = statement(case, torch.float64), statement(case, torch.float32)
    plain[3] = plain[3].to(case["logits"].dtype)
    for key, true, theirs in zip(("logp", "entropy", "lse", "grad"), exact, plain, strict=True):
        ours = results[f"{name}/{key}"]
        assert torch.equal(ours.isnan(), true.isnan())
        ours, true, theirs = (value.nan_to_num() for value in (ours, true, theirs))
        assert ours.shape == true.shape
        assert ours.dtype == (case["logits"].dtype if key == "grad" else torch.float32)
        if not true.numel():
            continue
        floor = 1e-6 * max(1.0, float(true.abs().max())) if key != "grad" else 1e-7
        if key == "grad" and ours.dtype == torch.bfloat16:
            floor = 2**-7 * float(true.abs().max())  # the interpreter cuts off where a GPU rounds
        error, allowed = (float((t.double() - true).abs().max()) for t in (ours, theirs))
        assert error <= 2 * allowed + floor, (key, error, allowed)


def test_banned_tokens_and_rows_without_gradient_become_zero(results: dict[str, Tensor]) -> None:
    gradient = results["banned/grad"]
    assert not gradient[0, :4096].any()
    assert not gradient[1:, 5:].any()
    assert not results["odd/grad"][1].any()
    assert results["odd/grad"][0].any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_compiles_for_hopper(dtype: str) -> None:
    """As far as a machine without a GPU can go: down to machine code."""
    target = {"logits": f"*{dtype}", "target": "*i64"}
    rest = {"stride": "i32", "vocab": "i32", "BLOCK": "constexpr"}
    outputs = dict.fromkeys(("inv_temperature", "logp", "entropy", "lse"), "*fp32")
    for kernel, own in (
        (row_logp_triton._stats_kernel, outputs),
        (row_logp_triton._grad_kernel, {"per_row": "*fp32", "rows": "i32"}),
    ):
        signature = target | own | rest
        source = ASTSource(kernel, signature, constexprs={(len(signature) - 1,): 4096})
        compiled = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        assert compiled.asm["cubin"]
