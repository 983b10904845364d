"""Folders as they are published go through plan, SFT, GRPO, evaluation and export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Server
from helpers.home import Home
from helpers.published import PUBLISHED, names_of, published_folder

from ovlt.data.worlds import synthetic
from ovlt.model.load import open_folder
from ovlt.model.sizes import parameters, read_config
from ovlt.plan.command import SIZES, find_sizes, read_request
from ovlt.plan.fit import problems

REWARD = """
from ovlt.reward import RewardOutput
def odd(x):
    return RewardOutput(float(sum(map(ord, x.response)) % 2), {"accuracy": 1.0})
"""
RECIPE = """
[run]
device = "cpu"
tensorboard = false
[model]
path = "{home}/model"
compute_dtype = "float32"
max_pixels = 262144
[data]
workers = 1
[sft]
data = "{home}/traces.parquet"
steps = 2
batch_samples = 4
token_budget = 600
[grpo]
start = "{folder}/sft/model"
data = "{home}/questions.parquet"
steps = 2
prompts_per_step = 2
updates_per_rollout = 1
token_budget = 600
eval_every = 0
[grpo.rollout]
n = 2
max_prompt_tokens = 160
max_response_tokens = 5
[engine]
max_sequences = 8
kv_cache_gib = 0.2
verify_every = 1
[reward]
function = "{home}/odd.py:odd"
workers = 1
[evaluate]
model = "{folder}/grpo/model"
max_prompt_tokens = 160
n = 0
limit = 2
max_response_tokens = 5
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_has_the_sizes_that_are_shipped(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED[name]))
    shipped = find_sizes(Path(name), "model.path")
    assert shipped.parent == SIZES
    assert parameters(read_config(file)) == parameters(read_config(shipped))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_is_opened_with_its_own_limits_and_heads(
    tmp_path: Path, name: str
) -> None:
    folder = open_folder(published_folder(tmp_path / name, name))
    assert folder.pixel_range == (65536, 16777216)
    config: Any = folder.config
    assert config.text_config.head_dim == PUBLISHED[name]["text_config"]["head_dim"]
    tied = config.tie_word_embeddings
    assert ("lm_head.weight" in names_of(folder.path)) != tied
    assert tied == any(size in name for size in ("2B", "4B"))


@pytest.mark.parametrize("model", ["qwen3-vl-4b", "qwen3-vl-8b", "qwen3.5-4b", "qwen3.5-9b"])
def test_the_shipped_recipes_fit_on_eight_gpus(model: str) -> None:
    recipe = SIZES.parent / f"{model}-grpo.toml"
    assert not problems(read_request([str(recipe), "--hardware=h100x8"]).run)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("name", ["Qwen3-VL-4B-Instruct", "Qwen3.5-4B"])
def test_a_published_folder_is_trained_measured_and_exported_as_it_came(
    tmp_path: Path, server: Server, name: str
) -> None:
    """One after the other, each from what the last one wrote; vLLM opens the export at the end."""
    from transformers import AutoModelForImageTextToText

    source = published_folder(tmp_path / "model", name)
    items = list(synthetic.generate(["shapes"], "train", 6, 5, synthetic.WorldSpec(size=84)))
    synthetic.write_questions(items, tmp_path / "questions.parquet")
    rows = synthetic.trace_rows(items, {"direct": 1.0}, 5)
    synthetic.write_sft(rows, tmp_path / "traces.parquet")
    (tmp_path / "odd.py").write_text(REWARD)
    home = Home(tmp_path, RECIPE, server)
    for stage in ("sft", "grpo"):
        home.start(stage, "run").finish()
    home.start("evaluate", "run", f"--evaluate.data={tmp_path}/questions.parquet").finish()
    result = json.loads((home.run_folder("run") / "evaluate" / "evaluation.json").read_text())
    assert result
    lines = (home.stage("grpo", "run") / "metrics.jsonl").read_text().splitlines()
    apart = [json.loads(line)["metrics"]["mismatch/probe_mean"] for line in lines]
    assert 0 < max(apart) < (0.05 if "3.5" in name else 1e-5)  # vLLM has the former in bfloat16
    exported = home.stage("grpo", "run") / "model"
    assert names_of(exported) == names_of(source)
    kept = json.loads((exported / "config.json").read_text())
    for key in {"rope_scaling", "rope_parameters"} & PUBLISHED[name]["text_config"].keys():
        assert kept["text_config"][key] == PUBLISHED[name]["text_config"][key]
    _, report = AutoModelForImageTextToText.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    shutil.rmtree(source)  # nothing of it is needed
    assert open_folder(exported).path == exported
