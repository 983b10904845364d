"""Run by tests/train/test_step.py, on one rank and on two: ``stage_worker.py HOME OUT``.

Sends the same samples through ``forward_backward`` in several splits, and the same questions
through ``Rollouts.draw``; rank 0 writes the numbers to OUT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovlt.system import env

env.apply("cpu")

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from ovlt.config import LossConfig, ModelConfig, RunConfig
from ovlt.config.load import recipe_from
from ovlt.data.loader import Loader
from ovlt.data.sampler import Sampler
from ovlt.model import gather
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder, open_folder
from ovlt.model.objective import Objective
from ovlt.model.packed_model import PackedModel
from ovlt.model.parallel import load_sharded, same_tower
from ovlt.reward.pool import RewardPool
from ovlt.rollout import exchange
from ovlt.rollout.engine import Engine, one_for_each
from ovlt.rollout.exchange import encode, rank_image
from ovlt.rollout.groups import RolloutBatch, Rollouts
from ovlt.rollout.open import open_engine, weight_sync
from ovlt.rollout.sync import PROBE_TOKENS
from ovlt.run.metrics import PhaseTimer
from ovlt.system.runtime import Runtime, leave, start
from ovlt.train.balance import plan
from ovlt.train.loss import CROSS_ENTROPY, loss_weights, policy_objective
from ovlt.train.pack import collate, extents, group_numbers
from ovlt.train.step import forward_backward, forward_only
from ovlt.types import Group, Sample

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.tiny import random_sample

SIZES = [[(84, 56)], [], [(56, 56), (28, 84)], [], [(112, 56)], [], [(56, 84)], [], []]
RESPONSES = [9, 23, 7, 16, 5, 19, 11, 21, 1]
LOSS = LossConfig(kl_coef=0.1, entropy_coef=0.01, ratio="sequence")


def make_samples(folder: ModelFolder) -> list[Sample]:
    rng = np.random.default_rng(17)
    samples = [random_sample(folder, rng, s, r) for s, r in zip(SIZES, RESPONSES, strict=True)]
    # Groups: two answers to one image; two images, with a long, a middling and an empty answer; and
    # two answers to a text, apart from each other.
    two_images, text = samples[2], samples[3]
    samples.insert(1, answer(samples[0], [17, 23, 29]))
    samples.append(answer(text, [31]))
    samples += [answer(two_images, rng.integers(5, 200, n)) for n in (60, 0)]
    for sample in samples:
        sample.engine_logp = -3 - rng.random(len(sample.token_ids)).astype(np.float32) * 5
        sample.advantage = float(rng.normal())
    return samples


def answer(other: Sample, response: Sequence[int] | np.ndarray) -> Sample:
    """Another answer to the prompt of a sample."""
    prompt = other.prompt.token_ids
    ids = np.concatenate([prompt, response]).astype(np.int64)
    return Sample(other.prompt, ids, np.arange(len(ids)) >= len(prompt))


def budgets(samples: list[Sample], config: Any, ranks: int) -> dict[str, list[list[list[int]]]]:
    """Bins of 1, 2 and many micro-batches per rank, as ``plan`` makes them."""
    lengths = extents(samples, config, group_numbers(samples))
    found: dict[int, list[list[list[int]]]] = {}
    for budget in range(sum(e.tokens for e in lengths), max(e.tokens for e in lengths) - 1, -5):
        bins = plan(lengths, ranks=ranks, budget=budget, config=config).bins
        found.setdefault(len(bins[0]), bins)
    assert max(found) > 2
    return {"micro1": found[1], "micro2": found[2], "many": found[max(found)]}


def splits(samples: list[Sample], config: Any, ranks: int) -> dict[str, list[list[list[int]]]]:
    pictured = [i for i, s in enumerate(samples) if s.prompt.images]
    text = [i for i, s in enumerate(samples) if not s.prompt.images]
    everything = [*pictured, *text]
    by_hand = {
        "no_image": [pictured, text],
        "filler": [everything, []],
        "divided": [everything[::2], everything[1::2]],  # groups over two micro-batches or ranks
    }
    if ranks == 1:
        hand = {name: [bins] for name, bins in by_hand.items()}
    else:
        hand = {name: [[b] for b in bins] for name, bins in by_hand.items()}
    return budgets(samples, config, ranks) | hand


class Case:
    """One model; its numbers for each split are noted under ``name/split``."""

    def __init__(
        self, runtime: Runtime, folder: ModelFolder, dtype: torch.dtype = torch.float32,
        **model: Any,
    ):  # fmt: skip
        self.runtime, self.folder = runtime, folder
        self.model = load_sharded(
            folder, runtime.mesh, runtime.device, ModelConfig(**model), dtype=dtype,
            temperature=0.9,
        )  # fmt: skip

    def batches(
        self, samples: list[Sample], bins: list[list[int]], *, share: bool = True
    ) -> list[PackedBatch]:
        weights = loss_weights([s.num_response_tokens for s in samples], "sequence_mean")
        return [
            collate(
                [samples[i] for i in b],
                [weights[i] for i in b],
                config=self.folder.config,
                patchify=self.folder.patchify,
                groups=None if share else range(len(b)),
            )
            for b in bins
        ]

    def update(
        self, batches: list[PackedBatch], objective: Objective, *, reduce_each: bool = False
    ) -> dict[str, torch.Tensor]:
        totals = forward_backward(
            self.model, batches, objective, self.runtime, reduce_each=reduce_each
        )
        sums, maxima, _ = totals.read(torch.zeros(()))
        seen = {f"sums/{k}": torch.tensor(v).double() for k, v in sums.items()}
        seen |= {f"maxima/{k}": torch.tensor(v).double() for k, v in maxima.items()}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                seen[f"grad/{name}"] = parameter.grad.full_tensor()
                parameter.grad = None
        return seen


def main(home: Path, out: Path) -> None:
    runtime = start(RunConfig(device="cpu"))
    seen: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {"ranks": runtime.world_size}

    def note(name: str, values: dict[str, torch.Tensor]) -> None:
        seen.update({f"{name}/{k}": v.clone().contiguous() for k, v in values.items()})

    for head in ("untied", "tied"):
        folder = open_folder(home / head)
        samples = make_samples(folder)
        case = Case(runtime, folder)
        frozen = load_sharded(
            open_folder(home / f"{head}_reference"), runtime.mesh, runtime.device, ModelConfig(),
            dtype=torch.float32, temperature=0.9, trainable=False,
        )  # fmt: skip
        every = splits(samples, folder.config, runtime.world_size)
        every["copies"] = every["micro1"]
        for name, bins in every.items():
            batches = case.batches(samples, bins[runtime.rank], share=name != "copies")
            if name in ("micro1", "copies"):
                shared = runtime.gather_json([b.segments.shared for b in batches])
                assert any(map(any, shared)) == (name == "micro1")
            whole = replace(CROSS_ENTROPY, by_row=False)
            note(f"{head}/{name}/sft", case.update(batches, whole))
            note(f"{head}/{name}/sft_by_row", case.update(batches, CROSS_ENTROPY))
            note(f"{head}/{name}/sft_each", case.update(batches, whole, reduce_each=True))
            for batch, ref in zip(batches, forward_only(frozen, batches, runtime), strict=True):
                batch.ref_logp = ref
            for batch, old in zip(batches, forward_only(case.model, batches, runtime), strict=True):
                batch.old_logp = old
            note(f"{head}/{name}/grpo", case.update(batches, policy_objective(LOSS)))
            objective = policy_objective(LOSS.model_copy(update={"ratio": "token"}))
            whole = replace(objective, by_row=False)
            note(f"{head}/{name}/token", case.update(batches, whole))
            note(f"{head}/{name}/token_by_row", case.update(batches, objective))
        facts[f"{head}/gathers"] = gathers(case.model, runtime)
        facts[f"{head}/reference_grads"] = sum(p.requires_grad for p in frozen.parameters())

    folder = open_folder(home / "untied")
    samples = make_samples(folder)
    bins = splits(samples, folder.config, runtime.world_size)["no_image"]
    variants = {
        "checkpointing": {"activation_checkpointing": "full"},
        "mlp": {"activation_checkpointing": "mlp"},
        "tower": {"activation_checkpointing": "tower"},
        "frozen": {"freeze_vision": True},
    }
    for name, model in variants.items():
        case = Case(runtime, folder, **model)
        batches = case.batches(samples, bins[runtime.rank])
        whole = replace(CROSS_ENTROPY, by_row=False)
        note(f"{name}/no_image/sft", case.update(batches, whole))

    for dtype in (torch.float32, torch.bfloat16):
        kept_features(runtime, folder, home, dtype)
        facts.setdefault("kept_features", []).append(str(dtype))

    lengths = extents(samples, folder.config, group_numbers(samples))
    planned = plan(lengths, ranks=3, budget=max(e.tokens for e in lengths), config=folder.config)
    facts["plans"] = runtime.gather_json(planned.bins)
    draw(runtime, home, out)
    if runtime.is_main:
        save_file(seen, out / "numbers.safetensors")
        (out / "facts.json").write_text(json.dumps(facts))
    runtime.close()


def kept_features(runtime: Runtime, folder: ModelFolder, home: Path, dtype: torch.dtype) -> None:
    """Use a frozen tower's features of the reference pass again: no bit of a number changes."""
    samples = make_samples(folder)
    case = Case(runtime, folder, dtype, freeze_vision=True, activation_checkpointing="full")

    def frozen(name: str) -> PackedModel:
        return load_sharded(
            open_folder(home / name), runtime.mesh, runtime.device, ModelConfig(),
            dtype=dtype, temperature=0.9, trainable=False,
        )  # fmt: skip

    reference = frozen("untied")
    assert same_tower(case.model, reference)
    assert not same_tower(case.model, frozen("untied_reference"))
    passes = [0]
    for model in (case.model, reference):
        model.model.visual.register_forward_pre_hook(
            lambda *_: passes.__setitem__(0, passes[0] + 1)
        )
    objective = policy_objective(LOSS.model_copy(update={"ratio": "token"}))
    every = splits(samples, folder.config, runtime.world_size)
    for name in ("no_image", "filler", "divided"):
        runs: list[dict[str, torch.Tensor]] = []
        for keep in (False, True):
            batches = case.batches(samples, every[name][runtime.rank])
            passes[0] = 0
            refs = forward_only(reference, batches, runtime, keep_features=keep)
            olds = forward_only(case.model, batches, runtime)
            assert passes[0] == len(batches) * (1 if keep else 2)
            assert all((b.features is not None) == keep for b in batches)
            assert all((b.patches is None) or not keep for b in batches)
            for batch, ref, old in zip(batches, refs, olds, strict=True):
                batch.ref_logp, batch.old_logp = ref, old
            numbers = case.update(batches, objective)
            assert passes[0] == len(batches) * (1 if keep else 3)
            numbers |= {f"ref{i}": ref for i, ref in enumerate(refs)}
            runs.append(numbers | {f"old{i}": old for i, old in enumerate(olds)})
        plain, reused = runs
        assert plain.keys() == reused.keys()
        for key, value in plain.items():
            assert torch.equal(value, reused[key]), (name, key)


def gathers(model: PackedModel, runtime: Runtime) -> dict[str, int]:
    """Compare whole tensors with those of DTensor, bit for bit; collectives by size of a bucket."""
    tensors = [(name, value.detach()) for name, value in model.named_parameters()]
    for rows in (1, 5):  # the last rank lacks rows, or has none
        odd = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
        tensors.insert(3, (str(rows), distribute_tensor(odd, runtime.mesh, [Shard(0)])))
    counts: dict[str, int] = {}
    for dtype in (torch.bfloat16, None):
        expected = {name: value.full_tensor() for name, value in tensors}
        expected = {name: value.to(dtype or value.dtype) for name, value in expected.items()}
        for size in (0, 5000, 256 << 20):
            gather.BUCKET_BYTES = size
            with CommDebugMode() as collectives:
                whole = list(gather.whole_tensors(tensors, dtype))
            counts[f"{dtype}/{size}"] = collectives.get_total_counts()
            assert [name for name, _ in whole] == list(expected)  # in order
            for name, value in whole:
                assert value.dtype == expected[name].dtype
                assert value.shape == expected[name].shape
                assert torch.equal(value, expected[name]), name
    counts["tensors"] = len(tensors)
    return counts


def draw(runtime: Runtime, home: Path, out: Path) -> None:
    """Seven prompts over the ranks; some groups are redrawn. All ranks' groups, as bytes."""
    folder = open_folder(home / "untied")
    grpo: dict[str, Any] = {
        "prompts_per_step": 7,
        "updates_per_rollout": 1,
        "dynamic_sampling": True,
    }
    grpo["rollout"] = {"n": 3, "max_response_tokens": 5, "max_prompt_tokens": 64}
    reward = {"function": f"{home / 'odd.py'}:odd", "workers": 1}
    recipe = recipe_from({"grpo": grpo, "reward": reward, "engine": {"backend": "transformers"}})
    rng = np.random.default_rng(23)
    prompts = [random_sample(folder, rng, [(56, 28)][: i % 2], 1).prompt for i in range(9)]
    dtype = torch.float32
    engine = open_engine(folder, recipe.engine, runtime, dtype=dtype, max_tokens=69)
    model = load_sharded(folder, runtime.mesh, runtime.device, recipe.model, dtype=dtype)
    with RewardPool(recipe.reward) as pool:
        rollouts = Rollouts(
            config=recipe.grpo,
            reward=recipe.reward,
            seed=recipe.run.seed,
            runtime=runtime,
            chat=folder.chat,
            engine=engine,
            sync=weight_sync(engine, model, folder, recipe.engine, dtype),
            pool=pool,
            loader=Loader(prompts.__getitem__, 1),
            sampler=Sampler(len(prompts), 3),
            timer=PhaseTimer(),
        )
        calls = watch(engine)
        batch = rollouts.draw(4)
        proves(batch, calls, alone=0)
        # The same where a greedy prompt must not be among others: the probe is asked alone.
        rollouts.sampler, engine.mixes_greedy = Sampler(len(prompts), 3), False
        apart = rollouts.draw(4)
        engine.mixes_greedy = True
        proves(apart, calls, alone=1)
        assert [g.prompt.id for g in apart.groups] == [g.prompt.id for g in batch.groups]
        # The same, graded while the engine is at work.
        rollouts.grade_early, rollouts.sampler = True, Sampler(len(prompts), 3)
        early = rollouts.draw(4)
        for one, other in zip(batch.groups, early.groups, strict=True):
            assert one.prompt.id == other.prompt.id
            assert [s.reward for s in one.samples] == [s.reward for s in other.samples]
        assert early.failures.gradings == batch.failures.gradings > 0
        # An engine whose weights are not the trainer's: before anything else, and on all ranks.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        with pytest.raises(RuntimeError, match="scores the image probe apart"):
            rollouts.draw(5)
    if runtime.world_size == 1:
        for group in batch.groups:
            images: Any = tuple(rank_image(x, 0) for x in group.prompt.images)
            group.prompt = replace(group.prompt, images=images)
    (out / f"groups-{runtime.rank}").write_bytes(encode(batch.groups))
    if runtime.world_size == 2:
        pixels = {prompt.id: prompt.images for prompt in prompts}
        received = images_of(runtime, batch.groups, pixels)
        (out / f"images-{runtime.rank}.json").write_text(json.dumps(received))
    counts = {
        "drawn": batch.drawn,
        "without": batch.no_signal_frac,
        "timeouts": batch.failures.timeouts,
    }
    (out / f"counts-{runtime.rank}.json").write_text(json.dumps(counts))


def watch(engine: Engine) -> list[list[int]]:
    """Return a list that gets, for each call of ``generate``, the most tokens of each prompt."""
    calls: list[list[int]] = []
    generate = engine.generate

    def watched(prompts: Any, sampling: Any, seeds: Any, finished: Any = None) -> Any:
        samplings = one_for_each(sampling, len(seeds))
        calls.append([s.max_tokens for s in samplings])
        return generate(prompts, sampling, seeds, finished)

    engine.generate = watched  # type: ignore[method-assign]
    return calls


def proves(batch: RolloutBatch, calls: list[list[int]], *, alone: int) -> None:
    """The first round has asked the probe, last or alone, and no other round has."""
    assert batch.proof is not None
    assert not batch.proof.repeated
    assert calls[0][-1] == (5 if alone else PROBE_TOKENS)
    assert sum(call == [PROBE_TOKENS] for call in calls) == alone
    assert sum(call.count(PROBE_TOKENS) for call in calls) == 1
    assert len(calls) - alone > 1  # dynamic sampling has drawn again
    calls.clear()


def images_of(
    runtime: Runtime, groups: list[Group], pixels: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, list[Any]]:
    """Divide the groups with images over two ranks, one of them over both; what came where."""
    pictured = [i for i, group in enumerate(groups) if group.prompt.images]
    owners = [groups[i].prompt.images[0].rank for i in pictured]  # type: ignore[attr-defined]
    # Rank 0 uses the first half, rank 1 the other and one more; nobody uses the last.
    half = len(pictured) // 2
    wanted = [set(pictured[:half]), {pictured[0], *pictured[half:-1]}]
    sent: list[int] = []
    swap = exchange.swap_bytes
    exchange.swap_bytes = lambda out, sizes: sent.extend(sizes) or swap(out, sizes)
    exchange.bring_images(runtime, groups, wanted)
    exchange.swap_bytes = swap
    here = [i for i in pictured if all(isinstance(x, np.ndarray) for x in groups[i].prompt.images)]
    assert all(sample.prompt is group.prompt for group in groups for sample in group.samples)
    for i in here:
        for image, original in zip(
            groups[i].prompt.images, pixels[groups[i].prompt.id], strict=True
        ):
            assert np.array_equal(image, original)
    foreign = [i for i, owner in zip(pictured, owners, strict=True) if owner != runtime.rank]
    needed = sum(pixels[groups[i].prompt.id][0].size for i in wanted[runtime.rank] & set(foreign))
    return {
        "wanted": sorted(wanted[runtime.rank]), "here": here, "owners": owners,
        "received": sent, "needed": [needed],
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
