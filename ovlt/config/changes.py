"""The keys in which two recipes differ, and those in which a resumed run may differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase

from ovlt.config.trees import Tree

# Recipe keys (shell patterns) in which a resumed run may differ from the run it continues: what
# concerns memory, speed and logging, and results at most by rounding.
MAY_CHANGE = (
    "run.folder",
    "run.resume",
    "run.accept_changes",
    "run.timeout_hours",
    "run.tensorboard",
    "run.wandb",
    "run.profile",
    "model.activation_checkpointing",
    "model.reduce_gradients",
    "model.reshard",
    "model.liger",
    "data.workers",
    "data.max_bad_share",
    "engine.gpu_memory",
    "engine.kv_cache_gib",
    "engine.max_sequences",
    "engine.runner",
    "engine.attention_backend",
    "engine.eager",
    "engine.sleep_level",
    "engine.max_mismatch",
    "engine.max_mean_mismatch",
    "engine.verify_every",
    "reward.workers",
    "reward.batch_size",
    "reward.max_error_frac",
    "*.title",
    "*.save_every",
    "*.log_groups",
    "*.token_budget",
    "*.share_prompts",  # the same gradient; runs of before it do not have the key
    "evaluate.benchmark.*",  # asked beside the training, which learns nothing of it
)
# What a run is measured by. Training does not depend on it, unless the best model is kept.
MEASURES = (
    "data.validation",
    "data.held_out",
    "data.validation_questions",
    "reward.verdict",
    "evaluate.*",
    "*.eval_every",
)
# Paths, which may change if what lies there has not (``ovlt.run.folder`` compares digests).
PLACES = (
    "model.path",
    "sft.start",
    "sft.data",
    "grpo.start",
    "grpo.data",
    "grpo.reference",
    "reward.function",
)
# The length of a run. This moves schedules that end with the run, so the user is warned.
LENGTH = ("*.steps", "*.epochs")


def changes_between(
    before: Mapping[str, object],
    now: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> list[tuple[str, str]]:
    """List (key, "key was A, is B") for all keys that differ between two recipes or tables.

    A key that ``before`` lacks had the value that ``defaults`` gives it: the version that wrote
    ``before`` did not know the key yet.
    """
    now = flat(now)
    known = flat(defaults or {})
    before = {key: value for key, value in known.items() if key in now} | flat(before)

    def shown(values: Mapping[str, object], key: str) -> str:
        return json.dumps(values[key]) if key in values else "absent"

    return [
        (key, f"{key} was {shown(before, key)}, is {shown(now, key)}")
        for key in sorted(before.keys() | now.keys())
        if shown(before, key) != shown(now, key)
    ]


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def flat(recipe: Mapping[str, object], prefix: str = "") -> Tree:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    keys: Tree = {}
    for key, value in recipe.items():
        nested = isinstance(value, Mapping)
        keys |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return keys
