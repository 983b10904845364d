"""recipes/openvlthinker-v1.toml and -v2.toml hold what was published, stage by stage.

Sources: tables and figures as numbered in arXiv 2503.17352 v1; "v3" is its third version, "code"
the released scripts of v1.2, "issue 1" the authors' answer there. Where two
disagree both are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ovlt.config.load import SMOKE_RECIPE, load_recipe
from ovlt.cycle.stages import cycle_stages
from ovlt.data.mixture.shares import MIXES

V1, V2 = (SMOKE_RECIPE.parent / f"openvlthinker-{v}.toml" for v in ("v1", "v2"))
BASE, SMALL = "models/Qwen2.5-VL-7B-Instruct", "models/Qwen2.5-VL-3B-Instruct"
R1, QWQ = "models/DeepSeek-R1-Distill-Qwen-14B", "models/QwQ-32B"
SUFFIX = " First think it through as an inner monologue, then give the final answer."
ALL = ""  # every stage whose name starts so

# (stages, key, version 1, version 2, source)
VALUES: list[tuple[str, str, Any, Any, str]] = [
    (ALL, "model.path", BASE, BASE, "section 4.1; v3, section 4.1"),
    (ALL, "model.max_pixels", 262144, 262144, "Table 7; code"),
    (ALL, "model.compute_dtype", "bfloat16", "bfloat16", "Tables 7 and 8"),
    (ALL, "data.suffix", "", "", "code: none in traces, SFT and evaluation"),
    # traces
    ("distill1", "distill.captioner", SMALL, BASE, "section 4.1; v3, section 5.2 (A.4: QwQ-32B)"),
    ("distill1", "distill.teacher", R1, QWQ, "section 4.1; v3, section 4.1"),
    ("distill1", "distill.questions", 59200, 7000, "section 4.1; v3, section 5: 14 x 500"),
    ("distill", "distill.k", 4, 4, "section 4.1; v3, A.3 (code: one greedy answer)"),
    ("distill", "distill.keep", "shortest", "shortest", "section 4.1 (code: second_longest)"),
    ("distill", "distill.temperature", 0.6, 0.6, "a comment in the code"),
    ("distill", "distill.top_p", 0.95, 0.95, "a comment in the code"),
    ("distill", "distill.top_k", 20, 20, "a comment in the code"),
    ("distill1", "distill.filter", "reflections", "reflections", "section 4.2; v3, section 5.2"),
    ("distill2", "distill.filter", "none", "none", "iteration 1 only: section 4.2"),
    ("distill3", "distill.filter", "none", "none", "iteration 1 only: section 4.2"),
    ("distill2", "distill.teacher", "", "", "Figure 4; v3, section 4.2"),
    ("distill3", "distill.teacher", "", "", "Figure 4; v3, section 4.2"),
    ("distill2", "distill.max_response_tokens", 2048, 2048, "code"),
    ("distill3", "distill.max_response_tokens", 2048, 2048, "code"),
    # SFT
    ("sft", "sft.start", BASE, BASE, "Figure 4; v3, section 4.2: from the base each time"),
    ("sft", "sft.optim.lr", 5e-7, 5e-6, "Table 7; code (Table 13 of v3: 5e-7)"),
    ("sft", "sft.optim.schedule", "cosine", "cosine", "Table 7"),
    ("sft", "sft.optim.warmup_ratio", 0.1, 0.1, "Table 7 (code: 0.15)"),
    ("sft", "sft.epochs", 1.0, 1.0, "Table 7"),
    ("sft", "sft.batch_samples", 32, 32, "Table 7"),
    ("sft", "model.freeze_vision", False, True, "v3, section 5: full; code: tower frozen"),
    (
        "sft1",
        "sft.steps",
        0,
        0,
        "25,000 and 3,000 rows, as the traces give: Table 2; v3, section 5",
    ),
    ("sft2", "sft.steps", 157, 0, "5,000 rows: Table 2; 3,000: v3, section 5"),
    ("sft3", "sft.steps", 157, 0, "5,000 rows: Table 2; 3,000: v3, section 5"),
    # GRPO
    ("grpo", "grpo.suffix", SUFFIX, SUFFIX, "code: a sentence of this meaning"),
    ("grpo", "grpo.prompts_per_step", 512, 512, "Table 8: rollout batch"),
    ("grpo", "grpo.updates_per_rollout", 4, 4, "Table 8: global batch 128"),
    ("grpo", "grpo.optim.lr", 1e-6, 1e-6, "Table 8"),
    ("grpo", "grpo.optim.weight_decay", 1e-2, 1e-2, "Table 8"),
    ("grpo", "grpo.optim.warmup_ratio", 0.0, 0.0, "Table 8"),
    ("grpo", "grpo.optim.max_grad_norm", 1.0, 1.0, "Table 8"),
    ("grpo", "grpo.optim.schedule", "constant", "constant", "code"),
    ("grpo", "grpo.rollout.temperature", 1.0, 1.0, "Table 8"),
    ("grpo", "grpo.rollout.top_p", 1.0, 1.0, "code: 0.99, which no trainer can reproduce"),
    ("grpo", "grpo.rollout.n", 5, 5, "code"),
    ("grpo", "grpo.rollout.max_prompt_tokens", 6144, 6144, "code"),
    ("grpo", "grpo.rollout.max_response_tokens", 2048, 2048, "code"),
    ("grpo", "grpo.loss.clip_low", 0.2, 0.2, "code"),
    ("grpo", "grpo.loss.clip_high", 0.3, 0.3, "code"),
    ("grpo", "grpo.loss.dual_clip", 3.0, 3.0, "code"),
    ("grpo", "grpo.loss.kl_coef", 1e-2, 1e-2, "code"),
    ("grpo", "grpo.loss.kl_estimator", "k3", "k3", "code"),
    ("grpo", "grpo.advantage_std", True, True, "code"),
    ("grpo", "grpo.dynamic_sampling", False, False, "v3 uses no filter online"),
    ("grpo", "reward.function", "answer", "released", "section 4: 0 or 1; code: 0, 0.5 or 1"),
    ("grpo", "grpo.eval_every", 5, 5, "code"),
    ("grpo", "grpo.save_every", 10, 10, "code"),
    ("grpo", "grpo.keep", "best", "best", "code: step 30 of iteration 2's hard stage"),
    # evaluation
    ("base", "evaluate.n", 0, 0, "Table 6: greedy"),
    (ALL, "evaluate.max_response_tokens", 2048, 2048, "Table 6"),
]

# (stages, key, value, source) of the two parts of version 2 and the one of version 1
PARTS: dict[Path, list[tuple[str, str, Any, str]]] = {
    V1: [
        ("grpo", "grpo.steps", 80, "issue 1"),
        ("grpo", "model.freeze_vision", False, "v3, section 5: full"),
        ("grpo1", "grpo.data", "data/openvlthinker-v1/grpo1.parquet", "Table 2"),
        ("grpo2", "grpo.data", "data/openvlthinker-v1/grpo1.parquet", "Table 2: the same 5,000"),
        ("grpo3", "grpo.data", "data/openvlthinker-v1/grpo3.parquet", "Table 2"),
    ],
    V2: [
        ("medium", "grpo.steps", 25, "code: 5 passes over 3,000"),
        ("hard", "grpo.steps", 165, "code: 15 passes over 6,000"),
        ("medium", "model.freeze_vision", True, "code"),
        ("hard", "model.freeze_vision", False, "code"),
        ("medium", "grpo.data", "data/openvlthinker-v2/medium.parquet", "v3, section 5"),
        ("hard", "grpo.data", "data/openvlthinker-v2/hard.parquet", "v3, section 5"),
    ],
}


def found(path: Path, stages: str, key: str) -> dict[str, Any]:
    """The value of a key in each stage whose name has ``stages`` in it."""
    values: dict[str, Any] = {}
    for step in cycle_stages(load_recipe(path)):
        if stages in step.name:
            value: Any = step.recipe
            for part in key.split("."):
                value = getattr(value, part)
            values[step.name] = value
    return values


@pytest.mark.parametrize(
    ("stages", "key", "first", "second", "source"),
    VALUES,
    ids=[f"{stages or 'all'} {key}" for stages, key, *_ in VALUES],
)
def test_every_stage_has_the_published_value(
    stages: str, key: str, first: Any, second: Any, source: str
) -> None:
    for path, value in ((V1, first), (V2, second)):
        values = found(path, stages, key)
        assert values, f"{path.stem} has no stage '{stages}'"
        assert set(values.values()) == {value}, f"{values}; {source}"


@pytest.mark.parametrize("path", [V1, V2], ids=["v1", "v2"])
def test_the_parts_of_grpo_have_the_published_values(path: Path) -> None:
    for stages, key, value, source in PARTS[path]:
        values = found(path, stages, key)
        assert set(values.values()) == {value}, f"{key} of {values}; {source}"


def test_the_stages_are_those_of_the_papers() -> None:
    """Three iterations of each; version 2's GRPO first on medium, then on hard questions."""
    names = [[step.name for step in cycle_stages(load_recipe(path))] for path in (V1, V2)]
    assert names[0] == [
        "base_answers",
        *(f"{stage}{i}" for i in (1, 2, 3) for stage in ("distill", "sft", "grpo")),
    ]
    assert names[1] == [
        "base_answers",
        *(
            name.replace("#", str(i))
            for i in (1, 2, 3)
            for name in ("distill#", "sft#", "grpo#-medium", "grpo#-hard")
        ),
    ]
    # each iteration's traces are those of the model before
    captioners = found(V2, "distill", "distill.captioner")
    assert captioners["distill2"] == "{folder}/grpo1-hard/model"
    assert captioners["distill3"] == "{folder}/grpo2-hard/model"
    starts = found(V2, "hard", "grpo.start")
    assert starts["grpo3-hard"] == "{folder}/grpo3-medium/model"


def test_sizes_agree_with_those_of_the_published_mixtures() -> None:
    first, second = (
        {s.name: s.recipe for s in cycle_stages(load_recipe(path))} for path in (V1, V2)
    )
    assert second["distill1"].distill.questions == MIXES["v2-seed"].total
    for i in (2, 3):
        sft = first[f"sft{i}"].sft
        assert 0 <= sft.steps * sft.batch_samples - MIXES[f"v1-sft{i}"].total < sft.batch_samples
    for name, passes in (("medium", 5), ("hard", 15)):  # of the code, which drops a last part
        grpo = second[f"grpo1-{name}"].grpo
        assert grpo.steps == passes * (MIXES[f"v2-{name}"].total // grpo.prompts_per_step)
