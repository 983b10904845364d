"""The compiled operators: how they load, and row_logp against its float64 statement."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ovlt_kernels import extension
from ovlt_kernels.row_logp import row_logp, row_logp_reference

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


# Sizes round the lanes (16) and the blocks (4096) of the kernel, and a real vocabulary.
@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 257, 4095, 4096, 4097, 8211, 151_936])
def test_row_logp_matches_the_statement(vocab: int) -> None:
    for rows in (1, 5):
        assert_close_to_fp64(*case(rows, vocab), temperature=1.0)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
def test_row_logp_divides_by_the_temperature(temperature: float) -> None:
    assert_close_to_fp64(*case(7, 1003), temperature)


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
    ],
)
def test_mistakes_are_explained(
    logits: torch.Tensor, target: torch.Tensor, temperature: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        row_logp(logits, target, temperature)


@NEEDS_EXTENSION
def test_the_operator_itself_refuses_what_it_cannot_read() -> None:
    operator = torch.ops.ovlt.row_logp
    good = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="outside"):
        operator(good, torch.tensor([0, 7]), 1.0)
    with pytest.raises(RuntimeError, match="contiguous float32"):
        operator(good.double(), torch.tensor([0, 1]), 1.0)
    with pytest.raises(RuntimeError, match="contiguous float32"):
        operator(torch.zeros(3, 2).t(), torch.tensor([0, 1]), 1.0)
    with pytest.raises(RuntimeError, match="int64"):
        operator(good, torch.tensor([0, 1, 1]), 1.0)


@NEEDS_EXTENSION
def test_the_operator_is_described_for_torch_compile() -> None:
    logits, target = case(3, 50)
    torch.library.opcheck(torch.ops.ovlt.row_logp.default, (logits, target, 1.3))
