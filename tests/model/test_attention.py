"""Segmented attention against the textbook formula, one segment at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_folder

from ovlt.model import attention
from ovlt.model.attention import groups_of, sdpa_segments
from ovlt.model.load import empty_model

LENGTHS = {
    "sorted": [1, 1, 3, 3, 3, 8],
    "unsorted": [5, 1, 9, 1, 5, 2, 9],
    "single": [13],
    "one token": [1],
    "equal": [4, 4, 4],
}


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def by_hand(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: list[int],
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """softmax(q k^T scale) v of every head of every segment."""
    out, start = [], 0
    share = q.shape[1] // k.shape[1]
    for length in lengths:
        part = slice(start, start + length)
        rows = []
        for head in range(q.shape[1]):
            qh, kh, vh = q[part, head], k[part, head // share], v[part, head // share]
            scores = qh @ kh.T * scale
            if causal:
                future = torch.ones(length, length, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(future, -torch.inf)
            rows.append(scores.softmax(-1) @ vh)
        out.append(torch.stack(rows, 1))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dim", [32, 64, 80, 128])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_equals_one_segment_at_a_time(
    causal: bool, dim: int, heads: tuple[int, int], lengths: list[int]
) -> None:
    torch.manual_seed(dim)
    total = sum(lengths)
    ours = [
        torch.randn(total, h, dim, dtype=torch.float64, requires_grad=True)
        for h in (heads[0], heads[1], heads[1])
    ]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    cotangent = torch.randn(total, heads[0], dim, dtype=torch.float64)
    scale = 0.7 * dim**-0.5
    got = sdpa_segments(*ours, boundaries(lengths), scale, causal)
    want = by_hand(*theirs, lengths, scale, causal)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    got.backward(cotangent)
    want.backward(cotangent)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


def test_one_sdpa_call_per_distinct_length() -> None:
    groups = groups_of(boundaries([5, 1, 9, 1, 5, 2, 9]))
    assert groups.shapes == [(2, 1), (1, 2), (2, 5), (2, 9)]
    assert groups.order is not None
    assert groups_of(boundaries([1, 1, 2, 5, 5])).order is None  # in order already: no copy


@pytest.mark.parametrize("cu", [[0, 3, 3, 5], [0, 0], [0, 4, 2]])
def test_an_empty_segment_is_refused(cu: list[int]) -> None:
    q = torch.zeros(max(1, cu[-1]), 1, 8)
    with pytest.raises(ValueError, match="length 0"):
        sdpa_segments(q, q, q, torch.tensor(cu, dtype=torch.int32), 1.0, True)


def test_names_are_known_to_transformers_and_say_how_they_are_called() -> None:
    """transformers hands a tower whose attention has "flash" in its name all windows at once, and
    looks such a name of a decoder up as a package; so one name has the word, the other has not."""
    from transformers import AttentionInterface

    attention.register()
    attention.register()
    known = AttentionInterface()
    assert known[attention.TEXT_ATTENTION] is attention.varlen
    assert known[attention.VISION_ATTENTION] is attention.varlen
    assert "flash" not in attention.TEXT_ATTENTION
    assert "flash" in attention.VISION_ATTENTION


def test_a_model_whose_attention_was_changed_refuses_to_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Otherwise packed samples would attend to each other, and nothing would say so."""
    from ovlt.model import qwen2_5_vl as family
    from ovlt.pack import collate

    folder = tiny_folder(tmp_path_factory.mktemp("model") / "m")
    model = empty_model(folder.config)
    family.bind(model)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    batch = collate([], [], config=folder.config, patchify=folder.patchify)
    with pytest.raises(RuntimeError, match="attend to each other"):
        model(batch)
