"""The compiled operators: how they load, and the row passes against their float64 statement."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.row_cases import CASES, assert_errs_at_most_twice_what_plain_pytorch_does, make
from safetensors.torch import load_file

from ovlt_kernels import extension
from ovlt_kernels.row_logp import row_logp, row_logp_grad_, row_logp_reference

NEEDS_EXTENSION = pytest.mark.skipif(not extension.HAS_EXTENSION, reason=extension.WHY)
NAMES = ("logp", "entropy", "lse")


def case(rows: int, vocab: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 1009 + vocab)
    logits = torch.randn(rows, vocab, generator=generator) * scale
    return logits, torch.randint(vocab, (rows,), generator=generator)


def assert_close_to_fp64(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> None:
    got = row_logp(logits, target, temperature)
    want = row_logp_reference(logits.double(), target, temperature)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.dtype == torch.float32, name
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=3e-6, msg=lambda m, n=name: n + m)


def test_the_extension_is_there_where_a_compiler_is() -> None:
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("no cmake or no C++ compiler on this machine")
    assert extension.HAS_EXTENSION, extension.WHY


def test_a_missing_or_broken_library_is_explained_and_harmless(tmp_path: Path) -> None:
    loaded, why = extension.load(tmp_path / "_C.so")
    assert not loaded
    assert "build_native" in why
    (tmp_path / "_C.so").write_bytes(b"not a library")
    loaded, why = extension.load(tmp_path / "_C.so")
    assert not loaded
    assert "does not load" in why


@NEEDS_EXTENSION
def test_a_library_of_an_older_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "OPERATORS", ("row_logp", "not_there_yet"))
    loaded, why = extension.load()
    assert not loaded
    assert "without not_there_yet" in why


# Sizes round the lanes (16) and the blocks (4096) of the kernel, and a real vocabulary.
@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 257, 4095, 4096, 4097, 8211, 151_936])
def test_row_logp_matches_the_statement(vocab: int) -> None:
    for rows in (1, 5):
        assert_close_to_fp64(*case(rows, vocab), temperature=1.0)


@pytest.mark.parametrize("name", CASES)
def test_errs_at_most_twice_what_plain_pytorch_does(name: str) -> None:
    case = make(name)
    logits, target, t = case["logits"], case["target"], case["temperature"]
    stats = row_logp(logits, target, t)
    found = dict(zip(NAMES, stats, strict=True))
    found["grad"] = row_logp_grad_(logits.clone(), target, stats, case["g"], case["h"], t)
    assert_errs_at_most_twice_what_plain_pytorch_does(name, found)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
def test_row_logp_divides_by_the_temperature(temperature: float) -> None:
    assert_close_to_fp64(*case(7, 1003), temperature)


def test_each_row_may_have_its_own_temperature() -> None:
    logits, target = case(5, 1003)
    temperature = torch.tensor([0.3, 0.7, 1.0, 1.3, 2.5])
    got = row_logp(logits, target, temperature)
    one = [row_logp(logits[i : i + 1], target[i : i + 1], float(temperature[i])) for i in range(5)]
    for a, b in zip(got, zip(*one, strict=True), strict=True):
        torch.testing.assert_close(a, torch.cat(b), rtol=1e-6, atol=1e-6)
    stats, g = row_logp(logits, target, temperature), torch.ones(5)
    got = row_logp_grad_(logits.clone(), target, stats, g, 0.3 * g, temperature)
    leaf = logits.double().requires_grad_()
    logp, entropy, _ = row_logp_reference(leaf, target, temperature)
    (want,) = torch.autograd.grad((logp + 0.3 * entropy).sum(), leaf)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-7)


@NEEDS_EXTENSION
@pytest.mark.slow
def test_the_loops_for_every_machine_agree(tmp_path: Path) -> None:
    """Those for lesser machines run here too; where a machine lacks one, it runs the next."""
    script = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from test_extension import case\n"
        "from ovlt_kernels.row_logp import row_logp, row_logp_grad_\n"
        "logits, target = case(5, 8211)\n"
        "logits[:, :4200:7] = -torch.inf\n"
        "target = target.clamp(min=4201)\n"
        "out, g = {}, torch.tensor([1.0, -0.5, 0.0, 2.0, 0.3])\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    z = logits.to(dtype)\n"
        "    stats = row_logp(z, target, 0.7)\n"
        "    out[f'{dtype}/stats'] = torch.stack(stats)\n"
        "    out[f'{dtype}/grad'] = row_logp_grad_(z, target, stats, g, 0.1 * g, 0.7)\n"
        "save_file(out, sys.argv[1])\n"
    )
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join(str(p) for p in (tests, tests.parent, tests.parents[1] / "kernels"))

    def run(simd: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", script, tmp_path / simd],
            env=os.environ | {"OVLT_SIMD": simd, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    for simd in ("avx512", "avx2", "plain"):
        done = run(simd)
        assert done.returncode == 0, done.stderr
    want = load_file(tmp_path / "avx512")
    for simd in ("avx2", "plain"):
        for name, a in load_file(tmp_path / simd).items():
            close = {"rtol": 8e-3, "atol": 1e-9} if "bfloat16/grad" in name else {"rtol": 3e-6}
            torch.testing.assert_close(a, want[name], **({"atol": 1e-6} | close))
    assert "OVLT_SIMD must be avx512, avx2 or plain" in run("sse").stderr


def test_row_logp_of_many_rows_runs_over_threads_as_over_one() -> None:
    logits, target = case(523, 901)
    many = row_logp(logits, target)
    one = [row_logp(logits[i : i + 1], target[i : i + 1]) for i in range(len(target))]
    for a, b in zip(many, zip(*one, strict=True), strict=True):
        assert torch.equal(a, torch.cat(b))


def test_row_logp_survives_extreme_logits() -> None:
    logits, target = case(4, 5003)
    logits[0] += 1e4
    logits[1] -= 1e4
    logits[2, 4500] = 300.0  # a new maximum in the second block: everything before underflows
    logits[3] = 0.25  # uniform: the entropy is log V
    got = row_logp(logits, target)
    assert all(torch.isfinite(t).all() for t in got)
    assert_close_to_fp64(logits, target, 1.0)
    assert got[1][3].item() == pytest.approx(torch.tensor(5003.0).log().item(), rel=1e-6)


@pytest.mark.parametrize("out", [slice(0, 4500), slice(4096, None), slice(1, None, 2)])
def test_tokens_that_are_left_out_carry_no_mass(out: slice) -> None:
    logits, _ = case(3, 9001)
    kept = torch.ones(9001, dtype=torch.bool)
    kept[out] = False
    logits[:, ~kept] = -torch.inf
    ids = kept.nonzero()[:3, 0]
    banned = torch.where(~kept)[0][:3]
    full = row_logp(logits, ids)
    short = row_logp(logits[:, kept], torch.arange(3))
    for name, a, b in zip(NAMES, full, short, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6, msg=lambda m, n=name: n + m)
    assert (row_logp(logits, banned)[0] == -torch.inf).all()


def test_nan_is_never_hidden() -> None:
    for column in (0, 4096, 9000):
        logits, target = case(3, 9001)
        logits[1, column] = torch.nan
        for out in row_logp(logits, target):
            assert out.isnan().tolist() == [False, True, False]
    logits = torch.full((1, 4100), -torch.inf)
    logits[0, 7] = torch.nan
    assert row_logp(logits, torch.tensor([9]))[1].isnan().all()
    assert row_logp(torch.full((1, 20), -torch.inf), torch.tensor([9]))[0].isnan().all()


def test_strided_logits_and_no_rows() -> None:
    logits, target = case(6, 74)
    assert_close_to_fp64(logits[::2, 3:], target[::2].clamp(max=70), 1.0)
    empty = row_logp(torch.empty(0, 11), torch.empty(0, dtype=torch.int64))
    assert [tuple(t.shape) for t in empty] == [(0,)] * 3


def test_gradient_goes_through_the_statement_and_stays_finite() -> None:
    logits, target = case(3, 19)
    logits[:, 5] = -torch.inf
    leaf = logits.double().requires_grad_()
    logp, entropy, _ = row_logp(leaf, target.clamp(max=4), 0.8)
    (logp + 0.1 * entropy).sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[:, 5] == 0).all()
    assert row_logp(logits.requires_grad_(), target.clamp(max=4))[0].requires_grad


def test_bfloat16_is_computed_in_float32() -> None:
    logits, target = case(4, 301)
    logits = logits.bfloat16()
    assert_close_to_fp64(logits.float(), target, 1.0)
    for a, b in zip(row_logp(logits, target), row_logp(logits.float(), target), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)


def gradient_fp64(
    logits: torch.Tensor, target: torch.Tensor, g: torch.Tensor, h: torch.Tensor, t: float
) -> torch.Tensor:
    leaf = logits.double().requires_grad_()
    logp, entropy, _ = row_logp_reference(leaf, target, t)
    return torch.autograd.grad((logp * g).sum() + (entropy * h).sum(), leaf)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 2, 17, 257, 4097, 8211])
def test_gradient_matches_the_statement_with_and_without_extension(dtype, vocab, monkeypatch):
    logits, target = case(7, vocab)
    logits = logits.to(dtype)
    g, h = torch.randn(2, 7, generator=torch.Generator().manual_seed(3))
    g[2] = h[2] = h[4] = 0.0
    want = gradient_fp64(logits, target, g, h, 0.7)
    stats = row_logp(logits, target, 0.7)
    plain = (logits.float() / 0.7).log_softmax(-1)  # what PyTorch does in the same dtype
    error = (gradient_of(plain, target, g, h).to(dtype) / 0.7 - want).norm()
    for there in {extension.HAS_EXTENSION, False}:
        monkeypatch.setattr("ovlt_kernels.row_logp.HAS_EXTENSION", there)
        got = row_logp_grad_(logits.clone(), target, stats, g, h, 0.7)
        assert got.dtype == dtype
        assert not got[2].any()
        assert (got - want).norm() <= 2 * error + 1e-6 * (1 + want.norm())
        no_entropy = row_logp_grad_(logits.clone(), target, stats, g, temperature=0.7)
        zero = row_logp_grad_(logits.clone(), target, stats, g, torch.zeros(7), 0.7)
        assert torch.equal(no_entropy, zero)


def gradient_of(
    log_p: torch.Tensor, target: torch.Tensor, g: torch.Tensor, h: torch.Tensor
) -> torch.Tensor:
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1, keepdim=True)
    one = torch.zeros_like(p).scatter_(1, target[:, None], 1.0)
    return g[:, None] * (one - p) - h[:, None] * p * (log_p + entropy)


def test_gradient_far_from_zero_and_of_tokens_that_are_left_out() -> None:
    logits, target = case(6, 5003)
    logits[0] += 1e4
    logits[1] -= 1e4
    logits[2, target[2]] += 60  # all but certain: p - 1 cancels
    target = target.clamp(max=4000)
    logits[3:, 4001:] = -torch.inf
    g, h = torch.ones(6), torch.full((6,), 0.1)
    want = gradient_of(logits.double().log_softmax(-1).clamp(min=-1e30), target, g, h)
    got = row_logp_grad_(logits.clone(), target, row_logp(logits, target), g, h)
    assert not got[3:, 4001:].any()
    for row in range(6):
        assert (got[row] - want[row]).norm() <= 2e-5 * want[row].norm() + 1e-30, row


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_without_gradient_becomes_zero_whatever_it_holds(dtype: torch.dtype) -> None:
    logits, target = case(4, 300)
    logits = logits.to(dtype)
    logits[1:3] = torch.nan
    g = torch.tensor([1.0, 0.0, 1.0, 0.0])
    got = row_logp_grad_(logits, target, row_logp(logits, target), g, 0.5 * g)
    assert not got[[1, 3]].any()
    assert got[2].isnan().all()
    assert got[0].any()


def test_gradient_of_many_rows_is_that_of_each() -> None:
    logits, target = case(523, 901)
    g, h = torch.randn(2, 523, generator=torch.Generator().manual_seed(4))
    stats = row_logp(logits, target)
    many = row_logp_grad_(logits.clone(), target, stats, g, h)
    for i in (0, 7, 261, 522):
        row = slice(i, i + 1)
        few = tuple(value[row] for value in stats)
        one = row_logp_grad_(logits[row].clone(), target[row], few, g[row], h[row])
        assert torch.equal(one, many[row])


def test_mistakes_in_the_gradient_are_explained() -> None:
    logits, target = case(3, 50)
    stats, g = row_logp(logits, target), torch.ones(3)
    with pytest.raises(ValueError, match="contiguous"):
        row_logp_grad_(logits.t().contiguous().t(), target, stats, g)
    with pytest.raises(ValueError, match=r"\[3\] each"):
        row_logp_grad_(logits, target, stats, torch.ones(4))
    with pytest.raises(ValueError, match="outside"):
        row_logp_grad_(logits, target + 50, stats, g)


@pytest.mark.parametrize(
    ("logits", "target", "temperature", "says"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), 1.0, r"\[R, V\]"),
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64), 1.0, "V > 0"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), 1.0, "floating"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 1.0, "each of the 2 rows"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32), 1.0, "int64"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1.0, "the id 3"),
        (torch.zeros(2, 3), torch.tensor([-100, 0]), 1.0, "the id -100"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0.0, "temperature"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), float("nan"), "temperature"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(3), "of the 2 rows"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2).long(), "floating"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 0]), "> 0"),
    ],
)
def test_mistakes_are_explained(
    logits: torch.Tensor, target: torch.Tensor, temperature: float | torch.Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        row_logp(logits, target, temperature)


@NEEDS_EXTENSION
def test_the_operator_itself_refuses_what_it_cannot_read() -> None:
    operator = torch.ops.ovlt.row_logp
    good = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="outside"):
        operator(good, torch.tensor([0, 7]), torch.ones(2))
    with pytest.raises(RuntimeError, match="contiguous float32"):
        operator(good.double(), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(RuntimeError, match="contiguous float32"):
        operator(torch.zeros(3, 2).t(), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(RuntimeError, match="int64"):
        operator(good, torch.tensor([0, 1, 1]), torch.ones(2))
    with pytest.raises(RuntimeError, match=r"inv_temperature must be .* \[R\]"):
        operator(good, torch.tensor([0, 1]), torch.ones(1))


@NEEDS_EXTENSION
def test_the_operator_is_described_for_torch_compile() -> None:
    logits, target = case(3, 50)
    inverse = torch.tensor([1.3, 1.0, 0.7])
    torch.library.opcheck(torch.ops.ovlt.row_logp.default, (logits, target, inverse))
    stats, upstream = torch.stack(row_logp(logits, target)), torch.ones(2, 3)
    arguments = (logits, target, stats, upstream, inverse)
    torch.library.opcheck(torch.ops.ovlt.row_logp_grad_.default, arguments)
