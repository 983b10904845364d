"""``world.py FOLDER DEVICE BACKEND``: a model, image questions, a reward and a GRPO recipe.

For bench/vllm_on_gpu/loop.sh: engine and trainer on one device, two updates for each rollout, the
engine asleep meanwhile. The model is tiny, or of 0.4 billion parameters (LOOP_SIZE=half). Needs no
GPU. Random weights answer nothing right, so the reward is one in
which random texts differ.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ovlt.config import BaseConfig
from ovlt.data.worlds import synthetic
from ovlt.smoke.base import make_folder

QUESTION = "How many red circles are there? There are 3 blue squares and 1 green bar."
REWARD = """
from ovlt.reward import RewardOutput
def odd(x):
    return RewardOutput(float(sum(map(ord, x.response)) % 2), {"accuracy": 1.0})
"""
RECIPE = """
[run]
device = "DEVICE"
tensorboard = false
folder = "HOME/runs"
[model]
path = "HOME/model"
compute_dtype = "DTYPE"
[data]
workers = 1
validation = "HOME/questions.parquet"
validation_questions = 3
[grpo]
data = "HOME/questions.parquet"
steps = STEPS
prompts_per_step = 8
updates_per_rollout = 2
token_budget = 2048
save_every = STEPS
eval_every = 2
log_groups = 4
[grpo.optim]
lr = 1e-3
[grpo.loss]
kl_coef = 0.01
[grpo.rollout]
n = 4
temperature = 0.9
max_prompt_tokens = 160
max_response_tokens = 24
[engine]
backend = "BACKEND"
max_sequences = 64
gpu_memory = 0.3
kv_cache_gib = 0.2
max_mismatch = 2.0
verify_every = 2
[reward]
function = "HOME/odd.py:odd"
workers = 1
[evaluate]
n = 2
limit = 3
max_prompt_tokens = 160
max_response_tokens = 24
"""
TINY = BaseConfig(
    hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1, vision_hidden=48,
    vision_intermediate=80, vision_depth=2, vision_heads=2, initializer_range=0.2, vocab_size=360,
)  # fmt: skip
SIZES = {
    "tiny": TINY,
    "half": TINY.model_copy(
        update={
            "hidden": 896, "intermediate": 4864, "layers": 24, "heads": 14, "kv_heads": 2,
            "vision_hidden": 512, "vision_intermediate": 1024, "vision_depth": 8,
            "vision_heads": 8, "initializer_range": 0.04,
        }
    ),
}  # fmt: skip


def main() -> None:
    home, device, backend = Path(sys.argv[1]).resolve(), *sys.argv[2:4]
    cuda = device == "cuda"
    home.mkdir(parents=True, exist_ok=True)
    items = list(synthetic.generate(["shapes"], "train", 12, 5, synthetic.WorldSpec(size=84)))
    size = SIZES[os.environ.get("LOOP_SIZE", "tiny")]
    make_folder(home / "model", size, [QUESTION] * 30)
    synthetic.write_questions(items, home / "questions.parquet")
    (home / "odd.py").write_text(REWARD)
    values = {
        "HOME": str(home), "DEVICE": device, "BACKEND": backend,
        "DTYPE": "bfloat16" if cuda else "float32", "STEPS": "4" if cuda else "2",
    }  # fmt: skip
    recipe = RECIPE
    for name, value in values.items():
        recipe = recipe.replace(name, value)
    (home / "recipe.toml").write_text(recipe)
    print(home / "recipe.toml")


if __name__ == "__main__":
    main()
