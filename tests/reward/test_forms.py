"""What a reward sees of a row, the forms in which it may be written, and its failures."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovlt.config import RewardConfig
from ovlt.reward.failures import Failures
from ovlt.reward.functions import RewardInput, RewardOutput, judges_reward
from ovlt.reward.load import check_output, load_reward
from ovlt.reward.pool import RewardPool
from ovlt.types import Prompt

HEAD = "import asyncio, os, time\nfrom ovlt.reward import RewardInput, RewardOutput, batch\n"
BATCH = (
    HEAD
    + """
@batch
def score(xs):
    for x in xs:
        if x.response == "raise": raise KeyError("lost")
        if x.response == "die": os._exit(3)
        if x.response == "hang": time.sleep(60)
    if xs[0].response == "short": return []
    return [RewardOutput(float(len(xs)), {}, x.response) for x in xs]
"""
)
ASYNC = (
    HEAD
    + """
async def score(x):
    if x.response == "raise": raise KeyError("lost")
    if x.response == "late": await asyncio.sleep(60)
    if x.response == "down": return RewardOutput(0.0, {}, "endpoint is down", failed=True)
    await asyncio.sleep(0.4)
    return RewardOutput(1.0, {}, x.response)
"""
)
SEES = (
    HEAD
    + """
from PIL import Image
def score(x):
    sizes = [Image.open(path).size for path in x.image_paths]
    return RewardOutput(1.0, {}, repr((x.extra, sizes)))
"""
)


def pool_of(tmp_path: Path, text: str, **settings: object) -> RewardPool:
    (tmp_path / "mine.py").write_text(text)
    return RewardPool(
        RewardConfig.model_validate({"function": f"{tmp_path}/mine.py:score"} | settings)
    )


def asked(*responses: str) -> list[RewardInput]:
    return [RewardInput(response, "5") for response in responses]


def test_a_batch_reward_gets_many_answers_at_once_and_only_the_culprit_is_blamed(tmp_path):
    with pool_of(tmp_path, BATCH, workers=2, timeout=0.5, batch_size=4) as pool:
        outputs = pool.score(asked(*"abcdefgh"))
        assert [output.reason for output in outputs] == list("abcdefgh")
        assert {output.score for output in outputs} == {4.0}
        mixed = ["a", "raise", "b", "die", "c", "hang", "d"]
        outputs = pool.score(asked(*mixed))
        reasons = dict(zip(mixed, [output.reason for output in outputs], strict=True))
        assert reasons == {
            **{text: text for text in "abcd"},
            "raise": "error: KeyError: 'lost'",
            "die": "worker died: exit code 3",
            "hang": "timeout",
        }
        assert [output.failed for output in outputs] == [text not in "abcd" for text in mixed]
        assert "0 outputs for 1 inputs" in pool.score(asked("short"))[0].reason


def test_an_async_reward_waits_for_many_answers_at_once(tmp_path):
    with pool_of(tmp_path, ASYNC, workers=1, timeout=2.0, batch_size=16) as pool:
        began = time.monotonic()
        outputs = pool.score(asked(*"abcdefgh", "raise", "down"))
        assert time.monotonic() - began < 2.0  # eight waits of 0.4 s, at once
        assert [output.reason for output in outputs[:8]] == list("abcdefgh")
        assert outputs[8].reason == "error: KeyError: 'lost'"
        assert (outputs[9].reason, outputs[9].failed) == ("endpoint is down", True)
        assert pool.score(asked("late", "a"))[0].reason == "timeout"
        assert (pool.errors, pool.timeouts) == (2, 1)


def test_a_reward_sees_the_columns_of_the_row_and_can_open_its_images(tmp_path):
    on_disk = tmp_path / "there.png"
    Image.new("RGB", (30, 20)).save(on_disk)
    pixels = np.zeros((56, 28, 3), np.uint8)
    extra = {"level": 3, "choices": ["a", "b"], "deep": {"x": None}}
    ids = np.arange(3)
    by_path = Prompt("1", "s", "q", "5", ids, (pixels,), (str(on_disk),), extra)
    by_bytes = Prompt("2", "s", "q", "5", ids, (pixels, pixels + 1), ("gone.png", ""))
    with pool_of(tmp_path, SEES, workers=1) as pool:
        inputs = [pool.input_of("r", prompt) for prompt in (by_path, by_bytes, by_bytes)]
        reasons = [output.reason for output in pool.score(inputs)]
        files = inputs[1].image_paths
        assert reasons == [repr((extra, [(30, 20)]))] + [repr(({}, [(28, 56), (28, 56)]))] * 2
        assert inputs[1] == inputs[2]
        assert len(set(files)) == 2
    assert not any(Path(file).exists() for file in files)
    with RewardPool(RewardConfig(workers=1)) as pool:  # a shipped reward looks at no image
        assert pool.input_of("r", by_bytes).image_paths == ("gone.png", "")


@pytest.mark.parametrize(
    "one",
    [1, 1.0, True, np.float32(1), np.int64(1), np.bool_(True), np.array(1.0), np.array([1]),
     torch.tensor(1.0), torch.tensor(True), torch.ones(1, dtype=torch.bfloat16), Fraction(1),
     Decimal(1)],
)  # fmt: skip
def test_the_scalars_of_numpy_and_torch_are_numbers(one):
    output = check_output(RewardOutput(one, {"accuracy": one}))
    assert (output.score, output.parts, type(output.score)) == (1.0, {"accuracy": 1.0}, float)
    assert output.is_right


@pytest.mark.parametrize(
    "bad", [None, "1", np.ones(2), torch.ones(2), np.float64("nan"), torch.tensor(float("inf"))]
)
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="score must be a finite number"):
        check_output(RewardOutput(bad))


def test_many_failures_stop_a_run_and_few_are_counted():
    failures = Failures()
    right, lost = RewardOutput(1.0), RewardOutput(0.0, {}, "error: KeyError: 'x'", failed=True)
    late = RewardOutput(0.0, {}, "timeout", failed=True)
    failures.add([right] * 7 + [lost, lost, late])
    assert (failures.gradings, failures.errors, failures.timeouts) == (10, 2, 1)
    failures.check("step 1", max_error_frac=0.2, timeout_s=5)
    with pytest.raises(ValueError, match="step 1: 2 of 10 gradings failed: error: KeyError: 'x'"):
        failures.check("step 1", max_error_frac=0.1, timeout_s=5)
    failures.add([late] * 20)
    with pytest.raises(ValueError, match="21 of 30 gradings timed out after 5 s"):
        failures.check("step 1", max_error_frac=0.2, timeout_s=5)


def test_the_three_judges_stand_side_by_side():
    wrong_for_mathruler = RewardInput("<answer>5 million</answer>", "5000000")
    parts = judges_reward(wrong_for_mathruler).parts
    assert (parts["accuracy"], parts["mathruler"]) == (1.0, 0.0)
    assert judges_reward(RewardInput("<answer>1/2</answer>", "0.5")).parts == {
        "accuracy": 1.0, "format": 0.0, "mathruler": 1.0, "math_verify": 1.0,
    }  # fmt: skip
    for name, right in (("mathruler", 1.0), ("math_verify", 1.0), ("judges", 1.0)):
        reward = load_reward(name)
        assert reward(RewardInput(r"<answer>\frac{1}{2}</answer>", "0.5")).score == right
        assert reward(RewardInput("<answer>9**9**9</answer>", "0.5")).score == 0.0
        assert reward(RewardInput("no tag", "0.5")).score == 0.0
