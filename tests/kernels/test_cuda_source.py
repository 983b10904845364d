"""The CUDA row passes: compiled for Hopper wherever nvcc is, and run wherever a GPU is.

On a GPU the Triton passes go through the same tests, so that the choice between the two is one of
speed only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.row_cases import CASES, assert_errs_at_most_twice_what_plain_pytorch_does, make
from torch import Tensor

from ovlt_kernels import row_logp as module
from ovlt_kernels.extension import HAS_CUDA
from ovlt_kernels.row_logp import gpu_kernel, row_logp, row_logp_grad_

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
NEEDS_NVCC = pytest.mark.skipif(not NVCC, reason="no nvcc on this machine")
NEEDS_GPU = pytest.mark.gpu  # without one, conftest.py skips them


def run(arguments: list[str | Path], **environment: str) -> str:
    done = subprocess.run(
        arguments,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The library with the CUDA passes for Hopper, and what the compiler said about them."""
    folder = tmp_path_factory.mktemp("native")
    torch_folder = Path(torch.__file__).parent
    configure = ["-DCMAKE_BUILD_TYPE=Release", f"-DOVLT_TORCH={torch_folder}", "-DOVLT_CUDA=ON"]
    configure += ["-DOVLT_CUDA_ARCHITECTURES=90a", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    run(["cmake", "-S", ROOT, "-B", folder, *configure])
    said = run(["cmake", "--build", folder, "--parallel", "--verbose"])
    return folder / "_C.so", said


@NEEDS_NVCC
def test_compiles_for_hopper_within_the_registers(built: tuple[Path, str]) -> None:
    entries = re.findall(
        r"Compiling entry function '(\S+)' for 'sm_90a'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        built[1],
        flags=re.DOTALL,
    )
    for kernel in ("row_stats_kernel", "row_grad_kernel"):
        assert sum(kernel in name for name, *_ in entries) == 3  # float32, bfloat16, float16
    for name, stack, stores, loads, registers in entries:
        assert (stack, stores, loads) == ("0", "0", "0"), name
        assert int(registers) <= 64, name  # two blocks of 512 threads fit into 65,536


@NEEDS_NVCC
def test_a_library_with_cuda_loads_in_any_torch_and_serves_cpus(built: tuple[Path, str]) -> None:
    code = """
import sys, torch
from ovlt_kernels import extension
before = extension.HAS_CUDA
assert extension.load(__import__("pathlib").Path(sys.argv[1])) == (True, "_C.so is loaded")
assert extension.has_cuda()
logits, target = torch.randn(3, 77, requires_grad=True), torch.tensor([0, 5, 76])
want = logits.log_softmax(-1)
logp, entropy, lse = torch.ops.ovlt.row_logp(logits.detach(), target, torch.ones(3))
torch.testing.assert_close(logp, want[range(3), target].detach())
torch.testing.assert_close(entropy, -(want.exp() * want).sum(-1).detach())
got = logits.detach().clone()
stats, upstream = torch.stack((logp, entropy, lse)), torch.tensor([[1.0] * 3, [0.0] * 3])
torch.ops.ovlt.row_logp_grad_(got, target, stats, upstream, torch.ones(3))
torch.testing.assert_close(got, torch.autograd.grad(want[range(3), target].sum(), logits)[0])
"""
    # A copy of the package without a library of its own: operators can be registered only once.
    package = built[0].with_name("ovlt_kernels")
    shutil.copytree(
        ROOT / "kernels" / "ovlt_kernels", package, ignore=shutil.ignore_patterns("*.so", "__py*")
    )
    run([sys.executable, "-c", code, built[0]], PYTHONPATH=str(package.parent))


def test_the_environment_chooses_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(name: str | None, built: bool) -> str:
        gpu_kernel.cache_clear()
        monkeypatch.setattr(module, "HAS_CUDA", built)
        if name is None:
            monkeypatch.delenv("OVLT_ROW_KERNEL", raising=False)
        else:
            monkeypatch.setenv("OVLT_ROW_KERNEL", name)
        return gpu_kernel()

    try:
        assert chosen(None, built=True) == "triton"
        assert chosen("triton", built=False) == "triton"
        assert chosen("cuda", built=True) == "cuda"
        with pytest.raises(ValueError, match="triton or cuda, not 'cutlass'"):
            chosen("cutlass", built=True)
        with pytest.raises(ValueError, match=r"OVLT_CUDA=ON .* build_native"):
            chosen("cuda", built=False)
    finally:
        gpu_kernel.cache_clear()


@NEEDS_GPU
@NEEDS_NVCC
def test_the_cuda_passes_are_there_where_nvcc_and_a_gpu_are() -> None:
    assert HAS_CUDA, "OVLT_REQUIRE_EXT=1 OVLT_CUDA=ON python setup.py build_native says why not"


@pytest.fixture(
    params=[
        "triton",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not HAS_CUDA, reason="the CUDA passes are not built")
        ),
    ]
)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "gpu_kernel", lambda: request.param)
    return request.param


def on_gpu(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return row_logp(logits.cuda(), target.cuda())


@NEEDS_GPU
@pytest.mark.parametrize("name", CASES)
def test_errs_at_most_twice_what_plain_pytorch_does(name: str, kernel: str) -> None:
    case = {key: value.cuda() for key, value in make(name).items()}
    logits, target, t = case["logits"], case["target"], case["temperature"]
    stats = row_logp(logits, target, t)
    found = dict(zip(("logp", "entropy", "lse"), stats, strict=True))
    found["grad"] = row_logp_grad_(logits.clone(), target, stats, case["g"], case["h"], t)
    assert_errs_at_most_twice_what_plain_pytorch_does(name, found)
    if name == "banned":
        assert not found["grad"][0, :4096].any()
        assert not found["grad"][1:, 5:].any()


@NEEDS_GPU
@pytest.mark.parametrize("rows", [1, 3, 40, 150, 700])
def test_a_row_is_the_same_however_many_there_are(rows: int, kernel: str) -> None:
    """A GPU with little to do gives several thread blocks to a row."""
    generator = torch.Generator().manual_seed(rows)
    vocab = 151_937
    logits = (3 * torch.randn(2, vocab, generator=generator)).bfloat16()
    logits = logits[torch.arange(rows) % 2]
    target = torch.arange(rows) % 2 * (vocab - 1)
    g, h = torch.randn(2, 2, generator=generator)[:, torch.arange(rows) % 2]
    want = row_logp(logits[:2], target[:2])
    stats = on_gpu(logits, target)
    for a, b in zip(stats, want, strict=True):
        torch.testing.assert_close(a.cpu(), b[torch.arange(rows) % 2], atol=3e-6, rtol=3e-6)
    few = row_logp_grad_(logits[:2].clone(), target[:2], want, g[:2], h[:2])
    got = row_logp_grad_(logits.cuda(), target.cuda(), stats, g.cuda(), h.cuda()).cpu()
    torch.testing.assert_close(got, few[torch.arange(rows) % 2], atol=1e-7, rtol=2**-7)


@NEEDS_GPU
def test_more_elements_than_an_int32_counts(kernel: str) -> None:
    rows, vocab = 14_200, 151_936
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda")
    logits[-3:] = torch.randn(3, vocab, generator=generator, device="cuda")
    target = torch.full((rows,), vocab - 1, device="cuda")
    g, h = torch.randn(2, rows, generator=generator, device="cuda")
    want = row_logp(logits[-3:], target[-3:])
    few = tuple(value[-3:] for value in (g, h))
    gradient = row_logp_grad_(logits[-3:].clone(), target[-3:], want, *few)
    stats = row_logp(logits, target)
    for a, b in zip(stats, want, strict=True):
        torch.testing.assert_close(a[-3:], b, atol=3e-6, rtol=3e-6)
    row_logp_grad_(logits, target, stats, g, h)
    torch.testing.assert_close(logits[-3:], gradient, atol=1e-7, rtol=2**-7)


@NEEDS_GPU
def test_nan_is_never_hidden(kernel: str) -> None:
    for vocab, column in ((9001, 0), (9001, 4096), (9001, 9000), (60_001, 31_337)):
        logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0))
        logits[1, column] = torch.nan
        for out in on_gpu(logits, torch.tensor([1, 2, 3])):
            assert out.isnan().tolist() == [False, True, False]
    logits = torch.full((2, 4100), -torch.inf)
    logits[0, 7] = torch.nan
    logp, entropy, _ = on_gpu(logits, torch.tensor([9, 9]))
    assert logp.isnan().all()
    assert entropy.isnan().all()


@NEEDS_GPU
def test_runs_on_the_current_stream_and_in_a_graph(kernel: str) -> None:
    case = {key: value.cuda() for key, value in make("odd").items()}
    logits, target = case["logits"], case["target"]
    want = row_logp(logits, target)
    gradient = row_logp_grad_(logits.clone(), target, want, case["g"], case["h"])
    static = torch.zeros_like(logits)
    row_logp(static, target)  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # refuses work on any other stream than its own
        stats = row_logp(static, target)
        row_logp_grad_(static, target, stats, case["g"], case["h"])
    static.copy_(logits)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(stats, want, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(static, gradient)


@NEEDS_GPU
def test_a_target_outside_of_the_vocabulary_is_reported(kernel: str) -> None:
    code = """
import torch  # noqa: E402
from ovlt_kernels.row_logp import row_logp
try:
    row_logp(torch.zeros(2, 33, device="cuda"), torch.tensor([0, 33], device="cuda"))
    torch.cuda.synchronize()
except RuntimeError as error:
    print("reported:", error)
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    said = run([sys.executable, "-c", code], PYTHONPATH=path, OVLT_ROW_KERNEL=kernel)
    assert "reported:" in said
    assert "assert" in said
