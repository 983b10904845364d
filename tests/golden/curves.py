"""Golden curves: 20 steps of SFT and of GRPO, kept as text, so that a refactoring can be shown to
change no number.

``make golden`` runs both stages on one rank and on two (float32, CPU, a model of 0.3 M parameters,
the real vLLM) and compares each logged figure with ``tests/golden/*.txt``; ``make golden
ARGS=--update`` writes those files anew, after a change that is meant to move them.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from helpers.commands import Command, Server
from helpers.tiny import tiny_folder

STEPS = 20
COLUMNS = {
    "sft": ("loss", "grad_norm"),
    "grpo": ("loss", "grad_norm", "reward/mean", "mismatch/kl", "kl_ref", "ratio/max_dev"),
}
CASES = [(stage, ranks) for stage in COLUMNS for ranks in (1, 2)]
# Measured: the same machine repeats every digit. Another CPU rounds otherwise, and a difference of
# 1e-7 grows to 1e-3 in some steps and changes a sampled token in the end.
SAME_CPU, OTHER_CPU, OTHER_CPU_STEPS = 1e-6, 1e-3, 3
NOISE = 1e-9  # absolute: the mismatch of two float32 engines is of this size

REWARD = """
from ovlt.reward import RewardOutput
def odd(x):
    return RewardOutput(float(sum(map(ord, x.response)) % 2), {"accuracy": 1.0})
"""
RECIPE = """
[run]
device = "cpu"
tensorboard = false
folder = "{home}/runs/default"
[model]
path = "{home}/model"
compute_dtype = "float32"
[data]
workers = 1
[sft]
data = "{home}/traces.parquet"
steps = 20
batch_samples = 6
token_budget = 400
[sft.optim]
lr = 3e-3
[grpo]
data = "{home}/questions.parquet"
steps = 20
prompts_per_step = 4
updates_per_rollout = 2
token_budget = 300
save_every = 0
eval_every = 0
log_groups = 0
[grpo.optim]
lr = 1e-3
schedule = "cosine"
[grpo.loss]
kl_coef = 0.01
[grpo.rollout]
n = 3
temperature = 0.9
max_prompt_tokens = 160
max_response_tokens = 7
[engine]
max_sequences = 16
kv_cache_gib = 0.2
[reward]
function = "{home}/odd.py:odd"
workers = 1
"""


def prepare(home: Path) -> None:
    """A model, questions, traces, a reward and a recipe in ``home``."""
    from ovlt.data.worlds import synthetic

    tiny_folder(home / "model", initializer_range=0.2)
    items = list(synthetic.generate(["shapes"], "train", 12, 5, synthetic.WorldSpec(size=84)))
    synthetic.write_questions(items, home / "questions.parquet")
    synthetic.write_sft(synthetic.trace_rows(items, {"direct": 1.0}, 5), home / "traces.parquet")
    (home / "odd.py").write_text(REWARD)
    (home / "recipe.toml").write_text(RECIPE.replace("{home}", str(home)))


def measure(home: Path, server: Server, stage: str, ranks: int) -> list[list[float]]:
    """The curve of one case: a row per step, a column per name of COLUMNS."""
    run = home / "runs" / f"{stage}-{ranks}"
    argv = [str(home / "recipe.toml"), f"--run.folder={run}"]
    Command(server, f"ovlt.{stage}", argv, ranks, home / f"{stage}-{ranks}").finish()
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["metrics"] for line in lines]
    return [[float(values[name]) for name in COLUMNS[stage]] for values in logged]


def path_of(stage: str, ranks: int) -> Path:
    return HERE / f"{stage}-{ranks}.txt"


def write(stage: str, ranks: int, curve: list[list[float]]) -> None:
    lines = [f"# {cpu()}", "step " + " ".join(COLUMNS[stage])]
    lines += [f"{step} " + " ".join(f"{x:.9g}" for x in row) for step, row in enumerate(curve, 1)]
    path_of(stage, ranks).write_text("\n".join(lines) + "\n")


def differences(stage: str, ranks: int, curve: list[list[float]]) -> list[str]:
    """Every figure that is not the golden one, as a sentence. On the CPU that wrote the file all
    steps count, on another one the first few."""
    head, names, *lines = path_of(stage, ranks).read_text().splitlines()
    assert names.split()[1:] == list(COLUMNS[stage]), names
    golden = [[float(x) for x in line.split()[1:]] for line in lines]
    same = head == f"# {cpu()}"
    steps, bound = (STEPS, SAME_CPU) if same else (OTHER_CPU_STEPS, OTHER_CPU)
    if len(curve) != len(golden):
        return [f"{stage}, {ranks} ranks: {len(curve)} steps, the golden curve has {len(golden)}"]
    return [
        f"{stage}, {ranks} ranks, step {step}: {name} is {x:.9g}, golden {y:.9g}"
        for step, (ours, theirs) in enumerate(zip(curve[:steps], golden[:steps], strict=True), 1)
        for name, x, y in zip(COLUMNS[stage], ours, theirs, strict=True)
        if not math.isclose(x, y, rel_tol=bound, abs_tol=NOISE if same else OTHER_CPU)
    ]


def cpu() -> str:
    """The model of this machine's CPU: other ones have other kernels."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in info.read_text().splitlines())
    fields = {key.strip(): value.strip() for key, value in pairs}
    return ", ".join(fields.get(name, "") for name in ("model name", "cpu family", "model"))


def main(arguments: list[str]) -> int:
    update = "--update" in arguments
    server, found = Server(), []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for stage, ranks in CASES:
            curve = measure(Path(folder), server, stage, ranks)
            if update:
                write(stage, ranks, curve)
            found += differences(stage, ranks, curve)
            print(f"{stage}, {ranks} rank(s): loss {curve[0][0]:.6f} -> {curve[-1][0]:.6f}")
    server.close()
    print("\n".join(found) or "every figure equals its golden value")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
