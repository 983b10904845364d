"""``--smoke``: a recipe at the size of recipes/smoke.toml, with the method it has of its own.

One rule: where data and models lie, how much there is of them, and what a size asks for (budgets,
batches, rates, image sizes, wording that a tiny model was taught) is smoke.toml's; everything else
stays the recipe's: objective, reward, updates per rollout, group size, sampling, which trace is
kept, what is frozen, and the iterations of a cycle with their parts.
"""

from __future__ import annotations

from typing import Any

# Keys of these names come from smoke.toml, in whatever table of METHOD they stand. One that it does
# not name falls back to its default: a path of the recipe means nothing here, nor does a number of
# GPUs. In an iteration of a cycle they are left out, so that those tables decide.
PLACES = ("path", "data", "validation", "held_out", "start", "reference", "captioner", "teacher")
AMOUNTS = ("steps", "epochs", "questions", "limit", "validation_questions", "batch_samples")
PACE = ("prompts_per_step", "eval_every", "save_every", "shard")
TOKENS = ("token_budget", "max_prompt_tokens", "max_response_tokens", "max_caption_tokens",
          "max_words")  # fmt: skip
WORDS = ("suffix", "caption_request", "teacher_request", "form")  # what a tiny model was taught
MACHINE = ("device", "compute_dtype", "reshard", "activation_checkpointing", "ranks")
OTHERS = ("model", "min_pixels", "max_pixels", "optim", "overlong_tokens", "tensor_parallel")
SIZED = frozenset((*PLACES, *AMOUNTS, *PACE, *TOKENS, *WORDS, *MACHINE, *OTHERS))
METHOD = ("run", "model", "data", "sft", "grpo", "evaluate", "distill", "cycle")
WORLD = ("synthetic", "base", "teacher", "demo")


def at_smoke_size(recipe: dict[str, Any], smoke: dict[str, Any], name: str) -> dict[str, Any]:
    """The tables of a recipe, as its file has them, with SIZED and WORLD from ``smoke``.

    ``name`` is that of the recipe's file: the run goes to runs/NAME-smoke, beside the real one.
    """
    tree = {table: keys for table, keys in recipe.items() if table not in WORLD}
    tree |= {table: smoke[table] for table in WORLD if table in smoke}
    for table in METHOD:
        if table in recipe or table in smoke:
            tree[table] = _laid(_without(recipe.get(table, {})), _only(smoke.get(table, {})))
    tree["run"] = tree.get("run", {}) | {"folder": f"runs/{name}-smoke/seed{{seed}}"}
    return tree


def _is_sized(key: str, value: Any) -> bool:
    # `model` is a path in [evaluate], and a table of [model]'s keys in a part of an iteration
    return key in SIZED and (key == "optim" or not isinstance(value, dict))


def _without(value: Any) -> Any:
    """Without the sized keys, at any depth. An empty path stays (no teacher: the model itself), and
    so does a place in the run's own folder."""
    if isinstance(value, list):
        return [_without(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: _without(v) for k, v in value.items() if not _is_sized(k, v) or _is_inner(v)}


def _is_inner(value: Any) -> bool:
    return isinstance(value, str) and (value == "" or value.startswith("{folder}"))


def _only(table: dict[str, Any]) -> dict[str, Any]:
    """The sized keys alone; of tables within, the same."""
    return {
        key: value if _is_sized(key, value) else _only(value)
        for key, value in table.items()
        if _is_sized(key, value) or isinstance(value, dict)
    }


def _laid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    tree = dict(under)
    for key, value in over.items():
        below = tree.get(key)
        tree[key] = (
            _laid(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
        )
    return tree
