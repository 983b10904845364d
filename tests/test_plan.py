"""The plan of a run: its counts are those of the real model, its refusals say what mends them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_sample, tiny_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ovlt.estimate import (
    GIB,
    Assumptions,
    Run,
    checkpoint_bytes,
    generation_seconds,
    layout,
    logit_rows,
    memory,
    step_seconds,
    sync_seconds,
)
from ovlt.fit import changed, problems, share_range
from ovlt.hardware import GPUS, node
from ovlt.loss import cross_entropy
from ovlt.model import qwen2_5_vl as family
from ovlt.model.load import Folder, empty_model, fill_buffers
from ovlt.model.qwen2_5_vl_sizes import (
    decoder_activations,
    forward_flops,
    head_flops,
    kv_bytes_per_token,
    parameters,
    read_config,
    tower_activations,
)
from ovlt.pack import Extent, collate, plan
from ovlt.plan import SIZES, main, read
from ovlt.recipe import REPOSITORY, load_recipe
from ovlt_kernels import blocks

RECIPES = REPOSITORY / "recipes"
V1, V2 = (str(RECIPES / f"openvlthinker-{v}.toml") for v in ("v1", "v2"))
SHIPPED = sorted(SIZES.glob("*.json"))
P7, P3 = 8_292_166_656, 3_754_622_976  # as the model hub counts the published safetensors


def run_of(recipe: str, hardware: str, *words: str) -> Run:
    return read([recipe, f"--hardware={hardware}", *words])[0]


# --- sizes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_sizes_are_those_of_transformers(file: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    shutil.copy(file, tmp_path / "config.json")
    model: Any = empty_model(AutoConfig.from_pretrained(tmp_path))
    counted = parameters(read_config(file))

    def real(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    assert counted.total == real(model) == {"3": P3, "7": P7}[file.stem[-2]]
    assert counted.tower == real(model.model.visual)
    language = model.model.language_model
    assert counted.decoder == real(language.layers) + real(language.norm)
    assert counted.embedding == real(language.embed_tokens)
    blocks_of = {*model.model.visual.blocks, *language.layers}
    in_blocks = sum(real(block) for block in blocks_of)
    assert counted.root == counted.total - in_blocks


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path, tied: bool) -> None:
    folder = tiny_folder(tmp_path, tied=tied, kv_heads=2, layers=3)
    ours = read_config(tmp_path / "config.json")
    assert parameters(ours) == parameters(folder.config)
    assert parameters(ours).total == sum(p.numel() for p in empty_model(folder.config).parameters())
    assert parameters(ours).head == (0 if tied else parameters(ours).embedding)
    grid = family.image_grid(ours, 84, 140)
    assert forward_flops(ours, 37, [grid]) == forward_flops(folder.config, 37, [grid])


def test_the_old_layout_of_a_configuration_is_read(tmp_path: Path) -> None:
    tree = json.loads((SIZES / "qwen2_5_vl_7b.json").read_text())
    old = {**tree, **tree.pop("text_config")}
    old["vision_config"]["in_chans"] = old["vision_config"].pop("in_channels")
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert parameters(read_config(tmp_path / "config.json")).total == P7


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ('{"model_type": "llama"}', "'llama'"),
        ('{"model_type": "qwen2_5_vl"}', "lacks vocab_size"),
    ],
)
def test_other_configurations_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_config(tmp_path / "config.json")


# --- a real, tiny model ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return tiny_folder(tmp_path_factory.mktemp("plan"), layers=3, vision_depth=3)


def trainable(folder: Folder, checkpointing: bool) -> Any:
    model: Any = empty_model(folder.config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(torch.bfloat16)
    fill_buffers(model, torch.device("cpu"))
    family.bind(model, logits_dtype=torch.bfloat16)
    return model.train()


def batch_of(folder: Folder, sizes: list[tuple[int, int]], response: int) -> Any:
    sample = random_sample(folder, np.random.default_rng(5), sizes, response)
    return collate([sample], [1.0], config=folder.config, patchify=folder.patchify)


def test_flops_are_those_of_the_real_forward(folder: Folder) -> None:
    """Against torch's counter. Attention runs as plain products, the whole causal square."""
    model = trainable(folder, checkpointing=False)
    text = folder.config.text_config
    size = (252, 140)
    batch = batch_of(folder, [size], 211)
    tokens, rows = len(batch.input_ids), len(batch.labels)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model(batch)
    counted = counter.get_flop_counts()
    (tower,) = (sum(v.values()) for k, v in counted.items() if k.endswith(".visual"))
    grid = family.image_grid(folder.config, *size)
    assert tower == pytest.approx(forward_flops(folder.config, 0, [grid]), rel=0.02)
    ours = forward_flops(folder.config, tokens, ()) - head_flops(folder.config, tokens - rows)
    ours += 2 * text.num_hidden_layers * text.hidden_size * tokens**2  # the other half
    assert counter.get_total_flops() - tower == pytest.approx(ours, rel=0.005)


class Alive(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are alive; their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._dropped, key)
        return out

    def _dropped(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def alive(model: Any, batch: Any) -> tuple[int, int]:
    """Bytes after the forward, and the peak of forward and backward."""
    model.zero_grad()
    with Alive() as counter:
        loss = model(batch, cross_entropy, True).loss
        kept = counter.now
        loss.backward()
    return kept, counter.peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_the_real_model(folder: Folder, checkpointing: bool) -> None:
    """Bytes per token and per patch: differences between a long and a short input."""
    model = trainable(folder, checkpointing)
    short, long = (batch_of(folder, [], response) for response in (601, 1801))
    alive(model, short)  # what is made once
    kept, peak = (
        (b - a) / (len(long.input_ids) - len(short.input_ids))
        for a, b in zip(alive(model, short), alive(model, long), strict=True)
    )
    text = decoder_activations(folder.config, 2)
    hidden_gradient = 2 * folder.config.text_config.hidden_size
    assert kept == pytest.approx(text.kept(checkpointing) + hidden_gradient, rel=0.06)
    if checkpointing:  # else the head is the fullest moment
        expected = text.kept(True) + hidden_gradient + text.block
        assert peak == pytest.approx(expected, rel=0.06)

    small, large = (batch_of(folder, [size], 601) for size in ((560, 560), (1120, 560)))
    tokens = len(large.input_ids) - len(small.input_ids)
    extra = alive(model, large)[0] - alive(model, small)[0] - tokens * kept
    tower = tower_activations(folder.config, 2)
    per_patch = extra / (len(large.patches) - len(small.patches))
    assert per_patch == pytest.approx(tower.kept(checkpointing), rel=0.06)


def test_fsdp_holds_what_the_plan_counts(tmp_path: Path) -> None:
    """Two ranks: the root group stays gathered; gradients are whole until the last micro-batch."""
    folder = tiny_folder(tmp_path / "model")
    worker = Path(__file__).parent / "workers" / "plan_worker.py"
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in ours} | {"OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(str(REPOSITORY / name) for name in ("", "kernels", "tests"))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(worker), str(tmp_path)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    levels = json.loads((tmp_path / "levels.json").read_text())
    p = parameters(folder.config)
    state = levels.pop("state")
    extra = {name: value - state for name, value in levels.items()}
    assert state == pytest.approx(12 * p.total / 2, rel=0.1)  # and the batch
    assert extra["after a forward without backward"] == 2 * p.root
    assert extra["after a micro-batch"] == 4 * p.total
    assert extra["after the last micro-batch"] == 4 * p.total / 2


# --- memory by hand ----------------------------------------------------------------------------
def test_memory_of_the_published_recipe_by_hand() -> None:
    run = run_of(V2, "h100x8", "--model.liger=off")
    held = memory(run, "grpo")
    head, block = held.moments["update, in the head"], held.moments["update, in a block"]
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
    fused = memory(changed(run, ("model.liger", "auto")), "grpo").moments["update, in a block"]
    assert fused[name] == 16384 * (2 * (4 * 3584 + 4) + attention + 3 * 2 * 18944)
    sampling = held.moments["sampling"]
    engine = sum(v for k, v in sampling.items() if k.startswith("engine"))
    assert engine == pytest.approx(0.6 * 79.0 * GIB)
    assert sampling["engine: weights"] == 2 * P7
    assert kv_bytes_per_token(run.config, 2) == 2 * 28 * 4 * 128 * 2
    assert held.kv_tokens == int((0.6 * 79.0 * GIB - 2 * P7 - 4 * GIB) / 57344)
    assert held.host == 8 * 2 * P7
    assert checkpoint_bytes(run) == 4 * P7 + 8 * trained


def test_what_is_switched_off_takes_nothing() -> None:
    run = run_of(V2, "h100x8", "--grpo.loss.kl_coef=0", "--grpo.updates_per_rollout=1")
    assert not any("reference, " in k for k in memory(run, "grpo").moments["sampling"])
    assert not {"old log-probs", "reference log-probs"} & set(step_seconds(run, "grpo"))
    assert "sampling" not in memory(run, "sft").moments  # SFT without validation has no engine
    looked = changed(run, ("sft.eval_every", 10))
    assert "sampling" in memory(looked, "sft").moments
    one = changed(run, ("grpo.prompts_per_step", 16))  # one micro-batch: reduced at once
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
    planned = layout(run, "grpo")
    grids = (run.grid,)
    samples = [Extent(planned.sample_tokens, grids, i // 5) for i in range(planned.samples)]
    real = plan(samples, ranks=run.node.count, budget=budget, config=run.config)
    assert {len(rank) for rank in real.bins} == {planned.micro_batches}
    filled = [b for rank in real.bins for b in rank]
    assert max(len(b) for b in filled) <= planned.per_micro_batch
    assert max(len({i // 5 for i in b}) for b in filled) <= planned.images
    if planned.towers == 1:  # no group is split: each image is seen once
        assert sum(len({i // 5 for i in b}) for b in filled) == planned.samples // 5


# --- seconds -----------------------------------------------------------------------------------
def test_seconds_by_hand() -> None:
    run = run_of(V2, "h200x8", "--grpo.updates_per_rollout=1", "--grpo.prompts_per_step=128")
    tokens, response = 424 + 400, 400
    assert layout(run, "grpo").sample_tokens == tokens
    decoder = forward_flops(run.config, tokens, ()) - head_flops(run.config, tokens - response)
    tower = forward_flops(run.config, 0, [run.grid]) * layout(run, "grpo").towers / 5
    again = decoder - head_flops(run.config, response)  # checkpointing
    flops = 640 * (3 * decoder + tower + again)  # a frozen tower has no backward
    adam = 28 * run.trainable / 8 / 4.3e12
    seconds = step_seconds(run, "grpo")
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
        (("grpo.reward.workers", 4), "reward"),
    ],
)
def test_less_work_takes_less_time(change: tuple[str, Any], phase: str) -> None:
    run = run_of(V1, "h200x8")
    assert step_seconds(changed(run, change), "grpo")[phase] < step_seconds(run, "grpo")[phase]


def test_more_and_faster_gpus_take_less_time() -> None:
    run = run_of(V1, "h100x4")
    for name in ("h100x8", "h200x4"):
        other = replace(run, node=node(name))
        assert generation_seconds(other, 512, 5) < generation_seconds(run, 512, 5)
    half = step_seconds(replace(run, node=node("h100x8")), "grpo")["update"]
    assert half == pytest.approx(step_seconds(run, "grpo")["update"] / 2, rel=0.02)


# --- refusals ----------------------------------------------------------------------------------
OPTION = re.compile(r"--[a-z_.]+=[^\s,)]+")


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ([V1, "--hardware=h100x8", "--model.activation_checkpointing=false"], "checkpointing=true"),
        ([V1, "--hardware=h100x4"], "--grpo.token_budget="),
        ([V2, "--hardware=h100x8", "--grpo.rollout.gpu_memory=0.8"], "gpu_memory=0.7"),
        ([V2, "--hardware=h100x8", "--grpo.rollout.gpu_memory=0.1"], "gpu_memory=0.2"),
        ([V1, "--hardware=a100-40x8"], "--hardware=h100x8"),
        ([V1, "--hardware=h100x1"], "--hardware=h100x"),
        ([V1, "--hardware=h200x1"], "--hardware=h200x2"),
        ([V2, "--hardware=h200x8", "--sft.token_budget=500"], "--sft.token_budget=1024"),
        (
            [V2, "--hardware=h200x8", "--grpo.rollout.max_prompt_tokens=300"],
            "--grpo.rollout.max_prompt_tokens=424",
        ),
        (
            [V2, "--hardware=l40sx2", f"--sizes={SIZES / 'qwen2_5_vl_3b.json'}",
             "--model.activation_checkpointing=false", "--model.reshard=false"],
            "--hardware=l40sx",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_refusal_names_the_change_that_makes_it_fit(
    words: list[str], mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    out, err = capsys.readouterr()
    sentences = err.splitlines()
    assert all(line.startswith("ovlt.plan: ") for line in sentences)
    assert mend in err
    if "needs" in err:
        assert "TOO MUCH" in out
    mends = [option for line in sentences for option in OPTION.findall(line)]
    keys = {option.split("=")[0] for option in mends}
    assert main([*(w for w in words if w.split("=")[0] not in keys), *mends]) == 0


def test_what_no_known_node_holds_is_said() -> None:
    run = run_of(V1, "h200x8", "--assume.reserve_gib=150")
    (first, *_) = problems(run, ["sft", "grpo"])
    assert "take a smaller model" in first


def test_the_share_of_the_engine_has_two_ends() -> None:
    run = run_of(V2, "h100x8")
    low, high = share_range(run, ["sft", "grpo"])
    for share, fits in ((low, True), (high, True), (low - 0.01, False), (high + 0.01, False)):
        other = changed(run, ("grpo.rollout.gpu_memory", share))
        held = memory(other, "grpo")
        room = run.node.gpu.memory_gib * GIB
        whole = held.kv_tokens >= 6144 + 2048
        beside = max(held.total(m) for m in ("sampling", "weight sync")) <= room
        assert (whole and beside) == fits


# --- command -----------------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", [V1, V2])
def test_the_published_recipes_fit_their_node(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([recipe, "--hardware", "h100x8", "--assume.sft_rows=25000"]) == 0
    out = capsys.readouterr().out
    assert "sizes: recipes/models/qwen2_5_vl_7b.json" in out
    assert "= 8,292.2" in out
    assert "not measured" in out
    assert out.count("days") == 2
    totals = [line for line in out.splitlines() if line.startswith("  total ")]
    assert [len(line.split()) for line in totals] == [3, 5]


def test_published_values() -> None:
    first, second = load_recipe(V1), load_recipe(V2)
    assert (first.sft.optim.lr, second.sft.optim.lr) == (5e-7, 5e-6)
    for recipe in (first, second):
        grpo = recipe.grpo
        assert (recipe.sft.batch_samples, recipe.sft.epochs) == (32, 1.0)
        assert (recipe.sft.optim.schedule, recipe.sft.optim.warmup_ratio) == ("cosine", 0.1)
        assert (grpo.prompts_per_step, grpo.updates_per_rollout, grpo.rollout.n) == (512, 4, 5)
        assert (grpo.optim.lr, grpo.optim.weight_decay, grpo.optim.max_grad_norm) == (1e-6, 1e-2, 1)
        assert (grpo.loss.clip_low, grpo.loss.clip_high, grpo.loss.dual_clip) == (0.2, 0.3, 3.0)
        assert (grpo.loss.kl_coef, grpo.loss.kl_estimator) == (1e-2, "k3")
        assert (grpo.rollout.temperature, grpo.rollout.top_p) == (1.0, 1.0)
        assert (grpo.rollout.max_prompt_tokens, grpo.rollout.max_response_tokens) == (6144, 2048)
        assert recipe.model.max_pixels == 262144
    assert (first.grpo.reward.function, second.grpo.reward.function) == ("answer", "released")
    assert (first.model.freeze_vision, second.model.freeze_vision) == (False, True)


def test_steps_follow_from_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([V2]) == 0
    assert "--assume.sft_rows=N" in capsys.readouterr().out
    assert main([V2, "--assume.sft_rows=3000"]) == 0
    assert "  94 steps: " in capsys.readouterr().out
    (tmp_path / "sft.jsonl").write_text('{"messages": []}\n' * 65)
    assert main([V2, f"--sft.data={tmp_path}/sft.jsonl"]) == 0
    assert "  3 steps: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hardware=h300x8"], "unknown hardware 'h300x8'"),
        (["--hardware=h100x9"], "1 to 8"),
        (["--assume.respons_tokens=3"], "did you mean 'response_tokens'?"),
        (["--assume.response_tokens=many"], "is no int"),
        (["--assume.decode_efficiency=0"], "above 0"),
        (["--assume.reserve_gib=nan"], "above 0"),
        (["--model.path=models/Llama-8B"], "--sizes=FILE"),
        (["--sizes=nowhere.json"], "cannot be read"),
        (["--grpo.steqs=3"], "did you mean"),
        (["--grpo.rollout.engine=transformers"], "engine=vllm"),
        (["--sft.data=", "--grpo.data="], "nothing to do"),
        ([V1], "more than one recipe"),
    ],
)
def test_mistakes_end_in_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([V2, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ovlt.plan import main; assert main(sys.argv[1:]) == 0;"
        "print(sorted({'torch', 'numpy', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, V2], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_chip_is_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    for chip in GPUS:
        assert main([V2, f"--hardware={chip}x8"]) in (0, 1)
        totals = re.findall(r"sum ([\d.]+)", capsys.readouterr().out)
        assert len(totals) == 2
        assert all(math.isfinite(float(value)) for value in totals)


def test_assumptions_are_printed_and_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    said: Callable[[], str] = lambda: capsys.readouterr().out  # noqa: E731
    assert main([V2]) == 0
    before = said()
    assert all(f"{name}=" in before for name in vars(Assumptions()))
    assert main([V2, "--assume.response_tokens=800"]) == 0
    after = said()
    assert "response_tokens=800" in after
    assert re.findall(r"sum ([\d.]+)", before)[1] != re.findall(r"sum ([\d.]+)", after)[1]
