"""``--smoke``: shrink a recipe to the size of recipes/smoke.toml and keep its method.

One rule: paths, amounts, and what depends on size (budgets, batches, rates, image sizes, the
wording that a tiny model was taught) come from smoke.toml. Everything else stays the recipe's:
objective, reward, updates per rollout, group size, sampling, which trace is kept, what is frozen,
and the iterations of a cycle with their stages.
"""

from __future__ import annotations

from ovlt.config.trees import Tree, merged

# Keys of these names come from smoke.toml, in every table of METHOD. A key that smoke.toml does not
# name falls back to its default: a path of the recipe means nothing here, nor does a number of
# GPUs. In an iteration of a cycle they are dropped, so that the tables above it decide.
PLACES = ("path", "data", "validation", "held_out", "start", "reference", "captioner", "teacher")
AMOUNTS = ("steps", "epochs", "questions", "limit", "validation_questions", "batch_samples")
PACE = ("prompts_per_step", "eval_every", "save_every", "shard")
TOKENS = ("token_budget", "max_prompt_tokens", "max_response_tokens", "max_caption_tokens",
          "max_words")  # fmt: skip
WORDS = ("suffix", "caption_request", "teacher_request", "form")  # what a tiny model was taught
MACHINE = ("device", "compute_dtype", "reshard", "activation_checkpointing", "reduce_gradients",
           "ranks")  # fmt: skip
OTHERS = ("model", "min_pixels", "max_pixels", "overlong_tokens", "tensor_parallel")
# Whole tables: a template of another model reads other keywords.
TABLES = ("optim", "chat_template_kwargs", "captioner_chat_template_kwargs",
          "teacher_chat_template_kwargs")  # fmt: skip
SIZED = frozenset((*PLACES, *AMOUNTS, *PACE, *TOKENS, *WORDS, *MACHINE, *OTHERS, *TABLES))
METHOD = ("run", "model", "data", "engine", "reward", "sft", "grpo", "evaluate", "distill", "cycle")
WORLD = ("synthetic", "base", "teacher", "demo")


def at_smoke_size(recipe: Tree, smoke: Tree, name: str) -> Tree:
    """Return the tables of a recipe, as its file has them, with SIZED and WORLD from ``smoke``.

    ``name`` is the name of the recipe's file: the run goes to runs/NAME-smoke, beside the real one.
    """
    tree = {table: keys for table, keys in recipe.items() if table not in WORLD}
    tree |= {table: smoke[table] for table in WORLD if table in smoke}
    for table in METHOD:
        if table in recipe or table in smoke:
            tree[table] = merged(_without(recipe.get(table, {})), _only(smoke.get(table, {})))
    tree["run"] = tree.get("run", {}) | {"folder": f"runs/{name}-smoke/seed{{seed}}"}
    return tree


def _is_sized(key: str, value: object) -> bool:
    # `model` is a path in [evaluate], and a table of [model]'s keys in a stage of an iteration
    return key in SIZED and (key in TABLES or not isinstance(value, dict))


def _without(table: Tree) -> Tree:
    """Drop the sized keys, at any depth. An empty path stays (no teacher: the model itself), and so
    does a path inside the run's own folder."""

    def below(value: object) -> object:
        if isinstance(value, list):
            return [below(item) for item in value]
        return _without(value) if isinstance(value, dict) else value

    rest = {k: below(v) for k, v in table.items() if not _is_sized(k, v) or _is_inner(v)}
    return {k: v for k, v in rest.items() if v != {} or table[k] == {}}  # no emptied tables


def _is_inner(value: object) -> bool:
    return isinstance(value, str) and (value == "" or value.startswith("{folder}"))


def _only(table: Tree) -> Tree:
    """Keep the sized keys alone, at any depth."""
    return {
        key: value if _is_sized(key, value) else _only(value)
        for key, value in table.items()
        if _is_sized(key, value) or isinstance(value, dict)
    }
