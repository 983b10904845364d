"""``grpo.pack_updates``: groups to optimizer steps, also those that user code has made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import random_sample, tiny_folder

from ovlt.config import GrpoConfig
from ovlt.grpo import pack_updates
from ovlt.model.load import ModelFolder
from ovlt.system.runtime import Runtime
from ovlt.types import Group, Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("model") / "m")


def alone() -> Runtime:
    return Runtime(0, 1, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]


def group_of(folder: ModelFolder, seed: int, advantages: list[float]) -> Group:
    """Answers of 3, 4, 5 ... tokens to a question with an image."""
    rng = np.random.default_rng(seed)
    first = random_sample(folder, rng, [(84, 84)], 3)
    prompt = first.prompt.token_ids
    samples: list[Sample] = []
    for i, advantage in enumerate(advantages):
        ids = np.concatenate([prompt, rng.integers(5, 200, 3 + i)])
        mask = np.arange(len(ids)) >= len(prompt)
        logp = np.zeros(len(ids), np.float32)
        samples.append(Sample(first.prompt, ids, mask, engine_logp=logp, advantage=advantage))
    return Group(first.prompt, samples)


def config(**changes: object) -> GrpoConfig:
    settings = {
        "updates_per_rollout": 1,
        "token_budget": 400,
        "loss": {"kl_coef": 0.0},
        "rollout": {"max_prompt_tokens": 8, "max_response_tokens": 8},  # below the budget
    }
    return GrpoConfig.model_validate(settings | changes)


def test_samples_without_their_groups_prompt_are_copies_and_it_is_said_once(
    folder: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    good, strange = group_of(folder, 1, [1.0, -1.0]), group_of(folder, 2, [1.0, -1.0, 0.5])
    odd = strange.samples[1]
    odd.token_ids = np.concatenate([[7], odd.token_ids])  # its code put a token before the prompt
    odd.loss_mask = np.concatenate([[False], odd.loss_mask])
    odd.engine_logp = np.zeros(len(odd.token_ids), np.float32)
    runtime = alone()
    for _ in range(2):
        (update,) = pack_updates([good, strange], config(), folder, runtime)
        (batch,) = update.batches
        # good: prompt and two; strange: prompt and two, and the odd one whole
        assert batch.segments.prefix == [-1, 0, 0, -1, 3, 3, -1]
        assert batch.num_samples == 5
    said = capsys.readouterr().out
    assert said.count("grpo.share_prompts") == 1
    assert strange.prompt.id in said


def test_copies_are_packed_on_request(folder: ModelFolder) -> None:
    groups = [group_of(folder, 3, [1.0, -1.0, 0.0])]
    shared, copies = (
        pack_updates(groups, config(share_prompts=on), folder, alone())[0] for on in (True, False)
    )
    prompt = len(groups[0].prompt.token_ids)
    assert shared.plan.tokens == prompt + 3 + 4 + 5
    assert copies.plan.tokens == shared.plan.sample_tokens == 3 * prompt + 3 + 4 + 5
    assert shared.plan.tower == copies.plan.tower  # images are seen once in any case
    assert not copies.batches[0].segments.shared


def test_only_samples_with_an_advantage_are_packed_if_the_others_are_skipped(
    folder: ModelFolder,
) -> None:
    some, none = group_of(folder, 4, [1.0, 0.0, -1.0]), group_of(folder, 5, [0.0, 0.0])
    (update,) = pack_updates([some, none], config(skip_zero_advantage=True), folder, alone())
    (batch,) = update.batches
    assert update.num_samples == batch.num_samples == 2
    assert batch.segments.lengths == [len(some.prompt.token_ids), 3, 5]
    # The skipped samples count in the normaliser: 3 + 4 + 5 tokens of one group, 3 + 4 of another.
    assert batch.loss_weight.tolist() == pytest.approx([1 / 19] * 8)


def test_a_divided_group_takes_its_prompt_along(folder: ModelFolder) -> None:
    group = group_of(folder, 6, [1.0, -1.0, 0.5, 0.25])
    prompt = len(group.prompt.token_ids)
    tight = config(token_budget=prompt + 11)  # no three of the answers fit
    (update,) = pack_updates([replace(group)], tight, folder, alone())
    assert len(update.batches) == 2
    assert update.plan.tokens == 2 * prompt + 3 + 4 + 5 + 6
    assert all(batch.segments.prefix == [-1, 0, 0] for batch in update.batches)
