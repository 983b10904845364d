"""What SFT and GRPO share: the step is the same for every split over micro-batches and ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import WORKERS, Command, Server
from helpers.tiny import tiny_folder
from safetensors.torch import load_file

from ovlt.rollout.exchange import decode
from ovlt.types import Group

pytestmark = pytest.mark.slow

WORKER = WORKERS / "stage_worker.py"
SPLITS = ["micro1", "micro2", "many", "no_image", "filler", "divided"]
REWARD = """
from ovlt.reward import RewardOutput
def odd(x):
    return RewardOutput(float(sum(map(ord, x.response)) % 4 == 1))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    home = tmp_path_factory.mktemp("stage")
    for seed, name in enumerate(["untied", "tied", "untied_reference", "tied_reference"]):
        tied = name.startswith("tied")
        family = "qwen3_vl" if tied else "qwen2_5_vl"  # another worker for each would be dear
        tiny_folder(home / name, tied=tied, family=family, seed=seed)
    (home / "odd.py").write_text(REWARD)
    for ranks in (1, 2):  # one after the other: they would share the cores
        (home / str(ranks)).mkdir()
        argv = [str(home), str(home / str(ranks))]
        Command(server, str(WORKER), argv, ranks, home / f"log-{ranks}").finish()
    return home


@pytest.fixture(scope="module")
def numbers(home: Path) -> dict[int, dict[str, torch.Tensor]]:
    return {ranks: load_file(home / str(ranks) / "numbers.safetensors") for ranks in (1, 2)}


def part(numbers: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tol: float) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = max(1.0, float(value.abs().max()))
        assert float((got[name] - value).abs().max()) <= tol * scale, name


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("head", ["untied", "tied"])
@pytest.mark.parametrize("loss", ["sft", "grpo", "token", "sft_by_row", "sft_each", "token_by_row"])
def test_loss_and_gradient_do_not_depend_on_the_split_or_on_when_they_are_made(
    numbers: dict[int, dict[str, torch.Tensor]], ranks: int, split: str, head: str, loss: str
) -> None:
    # Against one micro-batch on one rank in which every sample has a prompt of its own.
    want = part(numbers[1], f"{head}/copies/{loss.removesuffix('_by_row').removesuffix('_each')}/")
    got = part(numbers[ranks], f"{head}/{split}/{loss}/")
    assert any(k.startswith("grad/model.visual.") and v.any() for k, v in want.items())
    assert ("grad/lm_head.weight" in want) == (head == "untied")
    assert_same(got, want, 1e-5)


def test_the_reference_is_another_model_and_is_not_trained(
    home: Path, numbers: dict[int, dict[str, torch.Tensor]]
) -> None:
    for ranks in (1, 2):
        facts = json.loads((home / str(ranks) / "facts.json").read_text())
        assert facts["untied/reference_grads"] == facts["tied/reference_grads"] == 0
        sums = part(numbers[ranks], "untied/micro1/grpo/sums/")
        assert sums["kl_ref"] / sums["tokens"] > 1e-3
        ratio = numbers[ranks]["untied/micro1/grpo/maxima/ratio_dev"]
        assert ratio <= 1e-5  # old log-probs of the same weights


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("recomputed", ["checkpointing", "mlp", "tower"])
def test_activation_checkpointing_changes_no_bit(
    numbers: dict[int, dict[str, torch.Tensor]], ranks: int, recomputed: str
) -> None:
    want = part(numbers[ranks], "untied/no_image/sft/")
    assert_same(part(numbers[ranks], f"{recomputed}/no_image/sft/"), want, 0.0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_frozen_tower_gets_no_gradient_and_the_rest_the_same(
    numbers: dict[int, dict[str, torch.Tensor]], ranks: int
) -> None:
    want = part(numbers[ranks], "untied/no_image/sft/")
    got = part(numbers[ranks], "frozen/no_image/sft/")
    assert_same(got, {k: v for k, v in want.items() if ".visual." not in k}, 1e-6)


def test_features_of_a_frozen_tower_are_used_again_and_change_no_bit(home: Path) -> None:
    """The worker compares losses, gradients and log-probs, on one rank and on two."""
    for ranks in "12":
        facts = json.loads((home / ranks / "facts.json").read_text())
        assert facts["kept_features"] == ["torch.float32", "torch.bfloat16"]


def test_every_rank_makes_the_same_plan(home: Path) -> None:
    facts = [json.loads((home / ranks / "facts.json").read_text()) for ranks in "12"]
    plans = [plan for f in facts for plan in f["plans"]]
    assert len(plans) == 3
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_whole_tensors_are_gathered_in_buckets_and_equal_bit_for_bit(home: Path, head: str) -> None:
    """The worker compares the bits; here, how many collectives it took on two ranks."""
    counts = json.loads((home / "2/facts.json").read_text())[f"{head}/gathers"]
    for dtype in ("torch.bfloat16", "None"):
        one_by_one, some, all_at_once = (counts[f"{dtype}/{n}"] for n in (0, 5000, 256 << 20))
        assert one_by_one == counts["tensors"]
        assert 1 == all_at_once < some < one_by_one


def test_images_go_to_the_ranks_that_use_them_and_to_no_other(home: Path) -> None:
    for rank in range(2):
        images = json.loads((home / f"2/images-{rank}.json").read_text())
        assert set(images["owners"]) == {0, 1}
        assert images["here"] == images["wanted"] != []
        assert [sum(images["received"])] == images["needed"] != [0]  # what it has is not sent
        assert images["received"][rank] == 0


def test_drawn_groups_are_the_same_on_all_ranks_and_for_any_number_of_ranks(home: Path) -> None:
    def drawn(ranks: int, rank: int) -> list[Group]:
        return decode((home / str(ranks) / f"groups-{rank}").read_bytes(), rank)

    assert (home / "2/groups-0").read_bytes() == (home / "2/groups-1").read_bytes()
    counts = [json.loads((home / p).read_text()) for p in ("1/counts-0.json", "2/counts-1.json")]
    assert counts[0] == counts[1]
    assert counts[0]["drawn"] > 7  # some groups were redrawn, or this test shows too little
    one, two = drawn(1, 0), drawn(2, 0)
    assert len(one) == len(two) == 7
    for a, b in zip(one, two, strict=True):
        assert a.prompt.id == b.prompt.id
        assert len({s.reward for s in a.samples}) > 1
        assert len({tuple(s.token_ids) for s in a.samples}) == 3
        for x, y in zip(a.samples, b.samples, strict=True):
            assert x.token_ids.tolist() == y.token_ids.tolist()
            assert (x.text, x.reward, x.reason) == (y.text, y.reward, y.reason)
            assert x.engine_logp is not None
            assert y.engine_logp is not None
            np.testing.assert_allclose(x.engine_logp, y.engine_logp, atol=1e-4)
