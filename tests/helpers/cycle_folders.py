"""Made-up run folders of a cycle: two iterations, the second with two GRPO stages, and controls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovlt.benchmarks.stats import mean_ci95, wilson_ci95
from ovlt.distill.summary import histogram, keyword_rates, pass_rates

QUESTIONS = {"medium": 47, "hard": 60}
# name, table, iteration, comparison, title, skill on medium and hard questions
STAGES: tuple[tuple[str, str, int, str, str, tuple[float, float]], ...] = (
    ("base_answers", "evaluate", 0, "", "Base", (0.15, 0.05)),
    ("distill1", "distill", 1, "", "Traces for SFT-1", (0.6, 0.2)),
    ("sft1", "sft", 1, "", "SFT-1", (0.4, 0.15)),
    ("grpo1", "grpo", 1, "", "GRPO-1", (0.7, 0.3)),
    ("distill2", "distill", 2, "", "Traces for SFT-2", (0.8, 0.5)),
    ("sft2", "sft", 2, "", "SFT-2", (0.65, 0.35)),
    ("grpo2-medium", "grpo", 2, "", "GRPO-2 medium", (0.8, 0.4)),
    ("grpo2-hard", "grpo", 2, "", "GRPO-2 hard", (0.85, 0.55)),
    ("sft-only", "sft", 0, "single", "SFT alone, compute of the cycle", (0.5, 0.2)),
    ("grpo1-only", "grpo", 0, "single", "RL alone, questions of GRPO-1", (0.6, 0.25)),
    ("sft2-continue", "sft", 2, "restart", "SFT-2 from GRPO-1", (0.66, 0.3)),
    ("grpo2-continue-medium", "grpo", 2, "restart", "GRPO-2 after that, medium", (0.8, 0.4)),
    ("grpo2-continue-hard", "grpo", 2, "restart", "GRPO-2 after that, hard", (0.84, 0.5)),
    ("distill1-none", "distill", 1, "filter", "Traces: SFT-1, nothing filtered", (0.6, 0.2)),
    ("sft1-none", "sft", 1, "filter", "SFT-1, nothing filtered", (0.3, 0.1)),
    ("sft1-max_words", "sft", 1, "filter", "SFT-1, long traces left out", (0.35, 0.15)),
)


def make_cycle(run: Path, seed: int = 0, without: Sequence[str] = ()) -> Path:
    """Make a run folder; the stages in ``without`` are listed as waiting and have no folder."""
    entries = []
    for order, (name, table, iteration, comparison, title, skill) in enumerate(STAGES):
        entry: dict[str, Any] = {
            "name": name, "table": table, "iteration": iteration, "comparison": comparison,
            "title": title, "status": "waiting", "seconds": 0.0,
        }  # fmt: skip
        entries.append(entry)
        if name in without:
            continue
        entry |= {"status": "done", "seconds": 31.5 + 97 * order}
        folder, rng = run / name, np.random.default_rng([seed, order])
        folder.mkdir(parents=True)
        if table == "distill":
            (folder / "summary.json").write_text(json.dumps(distilled(rng, skill)))
            continue
        about = {"stage": table, "title": title, "order": order, "status": "done", "steps": 0,
                 "created": "", "seconds": 30.0}  # fmt: skip
        (folder / "stage.json").write_text(json.dumps(about))
        (folder / "evaluation.json").write_text(json.dumps(evaluated(rng, skill)))
        if table == "grpo":
            lines = map(json.dumps, training(rng, skill, steps=37 + 4 * order))
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "cycle.json").write_text(json.dumps({"seed": seed, "stages": entries}))
    return run


def evaluated(rng: np.random.Generator, skill: tuple[float, float]) -> dict[str, Any]:
    sources = [name for name, count in QUESTIONS.items() for _ in range(count)]
    means = np.repeat(skill, list(QUESTIONS.values()))
    chance = np.clip(rng.normal(means, 0.15), 0, 1)
    sampled = rng.binomial(4, chance) / 4
    greedy = (rng.random(len(chance)) < chance).astype(float)
    mean, half = mean_ci95(sampled.tolist())
    return {
        "split": "held_out", "model": "made up", "num_questions": len(chance),
        "greedy": {"accuracy": greedy.mean(), "ci95": wilson_ci95(int(greedy.sum()), len(chance))},
        "sampled": {"temperature": 1.0, "n": 4, "accuracy": mean,
                    "ci95": [mean - half, mean + half]},
        "response_tokens": {"greedy": 50.0, "sampled": 51.0}, "by_source": {}, "by_kind": {},
        "keywords": {"wait": 1.25, "maybe": 0.0, "broken": -1},
        "questions": {"id": [f"q{i}" for i in range(len(chance))], "source": sources,
                      "greedy": greedy.tolist(), "sampled": sampled.tolist()},
    }  # fmt: skip


def training(
    rng: np.random.Generator, skill: tuple[float, float], steps: int
) -> list[dict[str, Any]]:
    lines = []
    for step in range(steps + 1):
        progress = step / steps
        metrics = {}
        if step:
            metrics = {
                "reward/mean": skill[1] * (0.6 + 0.4 * progress) + rng.normal(0, 0.03),
                "response/tokens_mean": 50 + 12 * progress + rng.normal(0, 2),
            }
        if step % 8 == 0:
            metrics |= {
                "val/greedy": skill[0] * (0.8 + 0.2 * progress),
                "val/sampled": skill[0] * (0.75 + 0.2 * progress),
                "val/tokens_mean": 52 + 9 * progress,
            }
        lines.append({"step": step, "metrics": metrics, "seconds": {}})
    return lines


def distilled(rng: np.random.Generator, skill: tuple[float, float]) -> dict[str, Any]:
    counts = [
        (source, 4, int(rng.binomial(4, chance)))
        for (source, number), chance in zip(QUESTIONS.items(), skill, strict=True)
        for _ in range(10 * number)
    ]
    right = sum(correct > 0 for _, _, correct in counts)
    words = rng.gamma(6, 9, right).astype(int).tolist()
    phrases = ["Wait", "let me check", "However", "so it is", "hmm"]
    texts = [" ".join(rng.choice(phrases, 2)) for _ in range(right)]
    return {
        "funnel": [[len(counts), "questions"], [len(counts), "answered"],
                   [right, "with a correct answer"], [right, "with a correct trace"],
                   [right - 41, "kept"]],
        "dropped": [[len(counts) - right, "no sample is correct"],
                    [41, "its reasoning has more than 500 words"]],
        "pass": pass_rates(counts), "words": histogram(words), "keywords": keyword_rates(texts),
    }  # fmt: skip
