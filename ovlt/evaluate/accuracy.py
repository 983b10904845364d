"""Accuracy on questions, greedy and sampled, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovlt.config import Recipe
from ovlt.evaluate.keywords import KEYWORDS, keyword_counts
from ovlt.evaluate.stats import mean_ci95, wilson_ci95

if TYPE_CHECKING:
    from ovlt.data.sources import Limits, Row
    from ovlt.model.load import ModelFolder
    from ovlt.reward.pool import RewardPool
    from ovlt.rollout.engine import Completion, Engine
    from ovlt.system.runtime import Runtime
    from ovlt.types import Prompt


def evaluate_rows(
    engine: Engine,
    folder: ModelFolder,
    rows: Sequence[Row],
    limits: Limits,
    runtime: Runtime,
    pool: RewardPool,
    *,
    n: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    workers: int,
) -> dict[str, Any]:
    """Answer every row greedily and ``n`` times sampled -> the figures, the same on every rank.

    Correct means the reward's ``accuracy`` part is 1 (its score, where it has no such part).
    Collective.
    """
    from ovlt.data.loader import Loader
    from ovlt.data.sources import to_prompt
    from ovlt.rollout.engine import request_seeds

    mine = list(range(runtime.rank, len(rows), runtime.world_size))
    loader = Loader(lambda i: to_prompt(rows[i], limits), workers)
    prompts = loader.get(mine)
    loader.close()
    greedy = engine.generate(
        prompts, n=1, seeds=[0] * len(mine), temperature=0.0, max_tokens=max_tokens
    )
    sampled: list[list[Completion]] = [[] for _ in mine]
    if n:
        seeds = request_seeds(seed, 0, mine, n)
        sampled = engine.generate(
            prompts, n=n, seeds=seeds, temperature=temperature, max_tokens=max_tokens
        )
    completions = [[*g, *s] for g, s in zip(greedy, sampled, strict=True)]
    texts = [[folder.chat.decode(c.token_ids.tolist()) for c in group] for group in completions]
    verdicts = _grade(pool, prompts, texts)
    told = []
    for i, group, said, correct in zip(mine, completions, texts, verdicts, strict=True):
        lengths = [len(c.token_ids) for c in group]
        told.append([i, correct[0], correct[1:], lengths[0], lengths[1:], keyword_counts(said[0])])
    answers = sorted(a for rank in runtime.gather_json(told) for a in rank)
    return _figures(rows, answers, n, temperature)


def _grade(
    pool: RewardPool, prompts: Sequence[Prompt], texts: list[list[str]]
) -> list[list[float]]:
    from ovlt.reward.functions import RewardInput

    inputs = [
        RewardInput.of(text, prompt)
        for prompt, group in zip(prompts, texts, strict=True)
        for text in group
    ]
    outputs = iter(pool.score(inputs))
    return [[float(next(outputs).is_right) for _ in group] for group in texts]


def _figures(
    rows: Sequence[Row], answers: list[list[Any]], n: int, temperature: float
) -> dict[str, Any]:
    greedy = [a[1] for a in answers]
    sampled = [sum(a[2]) / n for a in answers] if n else []
    figures: dict[str, Any] = {
        "num_questions": len(answers),
        "greedy": {
            "accuracy": sum(greedy) / len(greedy),
            "ci95": list(wilson_ci95(int(sum(greedy)), len(greedy))),
        },
        "response_tokens": {"greedy": sum(a[3] for a in answers) / len(answers)},
        # per greedy answer: OpenVLThinker, arXiv v1, Figure 7
        "keywords": {
            word: sum(a[5][k] for a in answers) / len(answers) for k, word in enumerate(KEYWORDS)
        },
        "questions": {
            "id": [rows[a[0]].id for a in answers],
            "source": [rows[a[0]].source for a in answers],
            "greedy": greedy,
        },
    }
    if n:
        mean, half = mean_ci95(sampled)
        figures["sampled"] = {
            "temperature": temperature,
            "n": n,
            "accuracy": mean,
            "ci95": [max(0.0, mean - half), min(1.0, mean + half)],
        }
        figures["response_tokens"]["sampled"] = sum(sum(a[4]) for a in answers) / (n * len(answers))
        figures["questions"]["sampled"] = sampled
    for name, key in (("by_source", "source"), ("by_kind", "kind")):
        parts: dict[str, list[int]] = {}
        for position, answer in enumerate(answers):
            parts.setdefault(getattr(rows[answer[0]], key), []).append(position)
        figures[name] = {
            part: {"num": len(at), "greedy": sum(greedy[i] for i in at) / len(at)}
            | ({"sampled": sum(sampled[i] for i in at) / len(at)} if n else {})
            for part, at in sorted(parts.items())
            if part
        }
    return figures


def held_out(
    engine: Engine,
    folder: ModelFolder,
    recipe: Recipe,
    runtime: Runtime,
    pool: RewardPool,
    model: str,
) -> dict[str, Any]:
    """Measure on the held-out file (or [evaluate].data): once, when a stage has ended."""
    from ovlt.data.rows import read_rows

    path = recipe.evaluate.data or recipe.data.held_out
    rows, limits = read_rows(
        runtime,
        recipe,
        folder,
        path,
        what="questions",
        max_tokens=recipe.grpo.rollout.max_prompt_tokens,
        limit=recipe.evaluate.limit,
    )
    figures = evaluate_rows(
        engine,
        folder,
        rows.rows,
        limits,
        runtime,
        pool,
        n=recipe.evaluate.n,
        temperature=recipe.evaluate.temperature,
        max_tokens=recipe.evaluate.max_response_tokens,
        seed=recipe.evaluate.seed,
        workers=recipe.data.workers,
    )
    return {"split": Path(recipe.expand(path)).stem, "model": model} | figures


def write_evaluation(folder: Path, figures: dict[str, Any]) -> None:
    from ovlt.system.files import write_json

    write_json(folder / "evaluation.json", figures)


def sentence(figures: dict[str, Any]) -> str:
    low, high = figures["greedy"]["ci95"]
    text = f"greedy {figures['greedy']['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    if "sampled" in figures:
        low, high = figures["sampled"]["ci95"]
        text += f", sampled {figures['sampled']['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    length = figures["response_tokens"].get("sampled", figures["response_tokens"]["greedy"])
    return f"{text} on {figures['num_questions']} questions, {length:.1f} tokens per response"
