"""The Triton row passes: interpreted on a CPU against the float64 statement, and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from helpers.row_cases import CASES, assert_errs_at_most_twice_what_plain_pytorch_does, make
from safetensors.torch import load_file, save_file
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ovlt_kernels import row_logp_triton

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("name", CASES)
def test_errs_at_most_twice_what_plain_pytorch_does(name: str, results: dict[str, Tensor]) -> None:
    found = {
        key.split("/")[1]: value for key, value in results.items() if key.startswith(f"{name}/")
    }
    # the interpreter cuts bfloat16 off where a GPU rounds
    assert_errs_at_most_twice_what_plain_pytorch_does(name, found, bfloat16_error=2**-7)


def test_banned_tokens_and_rows_without_gradient_become_zero(results: dict[str, Tensor]) -> None:
    gradient = results["banned/grad"]
    assert not gradient[0, :4096].any()
    assert not gradient[1:, 5:].any()
    assert not results["odd/grad"][1].any()
    assert results["odd/grad"][0].any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_compiles_for_hopper(dtype: str) -> None:
    """As far as a machine without a GPU can go: down to machine code."""
    logits, shape = {"logits": f"*{dtype}"}, {"stride": "i32", "vocab": "i32"}
    vectors = ("at_target", "inv_temperature", "logp", "entropy", "lse")
    outputs = dict.fromkeys(vectors, "*fp32")
    for kernel, own, sizes in (
        (row_logp_triton._stats_kernel, outputs, {"LANES": 512, "EACH": 8}),
        (row_logp_triton._grad_kernel, {"per_row": "*fp32", "rows": "i32"}, {"BLOCK": 4096}),
    ):
        signature = logits | own | shape | dict.fromkeys(sizes, "constexpr")
        constants = {(list(signature).index(name),): value for name, value in sizes.items()}
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        assert compiled.asm["cubin"]
