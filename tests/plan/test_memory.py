"""Memory, micro-batches and seconds, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.planned import P7, V1, V2, run_of

from ovlt.model.qwen2_5_vl_sizes import forward_flops, head_flops, kv_bytes_per_token, parameters
from ovlt.plan.engine import GIB
from ovlt.plan.fit import with_settings
from ovlt.plan.fit_distill import Setting
from ovlt.plan.layout import layout
from ovlt.plan.memory import checkpoint_bytes, logit_rows, memory
from ovlt.plan.seconds import generation_seconds, seconds_per_step, sync_seconds
from ovlt.system.hardware import node
from ovlt.train.pack import Extent, plan
from ovlt_kernels import blocks


def test_memory_of_the_published_recipe_by_hand() -> None:
    run = run_of(V2, "h100x8", "--model.liger=off")
    planned = memory(run, "grpo")
    head, block = planned.moments["update, in the head"], planned.moments["update, in a block"]
    trained = P7 - parameters(run.config).tower  # the recipe freezes the tower
    assert head["float32 master weights, shard"] == 4 * P7 / 8
    assert head["Adam moments, shard"] == 8 * trained / 8
    assert head["reference, float32 shard"] == 4 * P7 / 8
    assert head["gradients, float32, whole until the last micro-batch"] == 4 * trained
    assert head["head: block of logits"] == 4352 * 152064 * 2
    assert head["head: float32 gradient"] == 4 * 152064 * 3584
    assert block["head: rounded gradient"] == 2 * 152064 * 3584
    assert "activations, tower" not in head
    # Checkpointed: a bfloat16 row for each of 28 layers, the last norm, cosines and sines.
    assert head["activations, decoder"] == 16384 * (28 * 2 * 3584 + 6 * 3584 + 512)
    # Recomputed: two norms of 8 bytes, q, k, v and output, 28 sums, four rows of SwiGLU.
    name, attention = "one block recomputed or in backward", 2 * 2 * (3584 + 512) + 4 * 28
    assert block[name] == 16384 * (2 * 8 * 3584 + attention + 4 * 2 * 18944)
    # Liger: a norm keeps input, output and one number, SwiGLU three rows.
    with_liger = with_settings(run, ("model.liger", "auto"))
    fused = memory(with_liger, "grpo").moments["update, in a block"]
    assert fused[name] == 16384 * (2 * (4 * 3584 + 4) + attention + 3 * 2 * 18944)
    sampling = planned.moments["sampling"]
    engine = sum(v for k, v in sampling.items() if k.startswith("engine"))
    assert engine == pytest.approx(0.6 * 79.0 * GIB)
    assert sampling["engine: weights"] == 2 * P7
    assert kv_bytes_per_token(run.config, 2) == 2 * 28 * 4 * 128 * 2
    assert planned.kv_tokens == int((0.6 * 79.0 * GIB - 2 * P7 - 4 * GIB) / 57344)
    assert planned.host == 8 * 2 * P7
    assert checkpoint_bytes(run) == 4 * P7 + 8 * trained


def test_what_is_switched_off_takes_neither_memory_nor_time() -> None:
    run = run_of(V2, "h100x8", "--grpo.loss.kl_coef=0", "--grpo.updates_per_rollout=1")
    assert not any("reference, " in k for k in memory(run, "grpo").moments["sampling"])
    assert not {"old log-probs", "reference log-probs"} & set(seconds_per_step(run, "grpo"))
    # SFT without validation and held-out questions opens no engine
    no_questions = with_settings(run, ("data.held_out", ""))
    assert "sampling" not in memory(no_questions, "sft").moments
    assert "sampling" in memory(run, "sft").moments
    validated = with_settings(no_questions, ("sft.eval_every", 10))
    assert "sampling" in memory(validated, "sft").moments
    one = with_settings(run, ("grpo.prompts_per_step", 16))  # one micro-batch: reduced at once
    head = memory(one, "grpo").moments["update, in the head"]
    trained = P7 - parameters(run.config).tower
    assert head["gradients, float32 shard"] == 4 * trained / 8


def test_logit_rows_are_those_of_the_kernels() -> None:
    for vocab in (151936, 152064, 640, 10**9):
        weight = torch.empty(vocab, 1, device="meta")
        rows = blocks.rows_per_block(blocks.CHUNK_BYTES["cuda"], weight)
        assert logit_rows(vocab) == rows


@pytest.mark.parametrize("hardware", ["h100x8", "h200x3"])
@pytest.mark.parametrize("response", [150, 400, 1703])
@pytest.mark.parametrize("budget", [8192, 16384])
def test_micro_batches_are_those_of_the_packer(hardware: str, response: int, budget: int) -> None:
    words = [f"--grpo.token_budget={budget}", f"--assume.response_tokens={response}"]
    run = run_of(V2, hardware, *words, "--grpo.prompts_per_step=256")
    batch = layout(run, "grpo")
    grids = (run.grid,)
    samples = [Extent(batch.sample_tokens, grids, i // 5) for i in range(batch.samples)]
    real = plan(samples, ranks=run.node.count, budget=budget, config=run.config)
    assert {len(rank) for rank in real.bins} == {batch.micro_batches}
    filled = [b for rank in real.bins for b in rank]
    assert max(len(b) for b in filled) <= batch.per_micro_batch
    assert max(len({i // 5 for i in b}) for b in filled) <= batch.images
    if batch.towers == 1:  # no group is split: each image is seen once
        assert sum(len({i // 5 for i in b}) for b in filled) == batch.samples // 5


# --- seconds -----------------------------------------------------------------------------------
def test_seconds_by_hand() -> None:
    run = run_of(V2, "h200x8", "--grpo.updates_per_rollout=1", "--grpo.prompts_per_step=128")
    tokens, response = 424 + 400, 400
    assert layout(run, "grpo").sample_tokens == tokens
    decoder = forward_flops(run.config, tokens, ()) - head_flops(run.config, tokens - response)
    tower = forward_flops(run.config, 0, [run.grid]) * layout(run, "grpo").towers / 5
    recomputed = decoder - head_flops(run.config, response)  # checkpointing
    flops = 640 * (3 * decoder + tower + recomputed)  # a frozen tower has no backward
    adam = 28 * run.trainable / 8 / 4.3e12
    seconds = seconds_per_step(run, "grpo")
    assert seconds["update"] == pytest.approx(flops / 8 / (790e12 * 0.40) + adam)
    passes = 640 * (decoder + tower) / 8 / (790e12 * 0.45)
    assert seconds["reference log-probs"] == pytest.approx(passes)
    assert seconds["reward"] == pytest.approx(80 * 0.005 / 2)
    gathered, cast, host = 4 * P7 * 7 / 8 / 315e9, 6 * P7 / 4.3e12, 4 * P7 / 44.8e9
    assert sync_seconds(run) == pytest.approx(gathered + cast + host + 1.0)


@pytest.mark.parametrize(
    ("change", "phase"),
    [
        (("model.activation_checkpointing", False), "update"),
        (("grpo.prompts_per_step", 256), "sampling"),
        (("grpo.rollout.n", 2), "sampling"),
        (("grpo.rollout.max_response_tokens", 512), "sampling"),
        (("reward.workers", 4), "reward"),
    ],
)
def test_less_work_takes_less_time(change: Setting, phase: str) -> None:
    run = run_of(V1, "h200x8")
    less = with_settings(run, change)
    assert seconds_per_step(less, "grpo")[phase] < seconds_per_step(run, "grpo")[phase]


def test_more_and_faster_gpus_take_less_time() -> None:
    run = run_of(V1, "h100x4")
    for name in ("h100x8", "h200x4"):
        other = replace(run, node=node(name))
        assert generation_seconds(other, 512, 5) < generation_seconds(run, 512, 5)
    half = seconds_per_step(replace(run, node=node("h100x8")), "grpo")["update"]
    assert half == pytest.approx(seconds_per_step(run, "grpo")["update"] / 2, rel=0.02)
