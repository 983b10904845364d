"""Accuracy on questions, greedy and sampled, with 95 % intervals.

Greedy measures the model's most likely answer, sampling its distribution, which is what GRPO
changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ovlt.benchmarks.stats import mean_ci95, wilson_ci95
from ovlt.config import EvaluateConfig
from ovlt.data.loader import Loader
from ovlt.data.rows import GoodRows, RowReader
from ovlt.data.sources import Row
from ovlt.evaluate.keywords import KEYWORDS, keyword_counts
from ovlt.reward.failures import Failures
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Completion, Engine, Sampling, request_seeds, sampling_of
from ovlt.system.files import write_json
from ovlt.system.runtime import Runtime
from ovlt.types import Prompt

Figures = dict[str, Any]  # evaluation.json
# Questions whose answers are in memory at a time: many, because towards the end of each such part
# the engine works on a few long answers.
_ASKED_AT_ONCE = 2048


class Answered(NamedTuple):
    """One question with its verdicts (1.0 right, 0.0 wrong) and lengths in tokens."""

    row: int
    greedy: float
    sampled: list[float]
    greedy_tokens: int
    sampled_tokens: list[int]
    keywords: list[int]  # counts in the greedy answer, in the order of KEYWORDS


def evaluate_rows(
    engine: Engine,
    reader: RowReader,
    rows: GoodRows,
    pool: RewardPool,
    sampling: Sampling,
    seed: int,
) -> Figures:
    """Answer every row greedily and ``sampling.n`` times sampled; the same figures on every rank.

    Right means that the reward's ``accuracy`` part is 1 (its score, if it has no such part). The
    engine is awake. Collective; raises ValueError if too many verdicts fail.
    """
    runtime, chat = reader.runtime, reader.folder.chat
    mine = list(range(runtime.rank, len(rows), runtime.world_size))
    seeds = request_seeds(seed, 0, mine, max(1, sampling.n))
    greedy = Sampling(n=1, temperature=0.0, max_tokens=sampling.max_tokens)
    loader = Loader(rows.prompt, reader.data.workers)
    ahead = 4 * reader.data.workers  # prompts whose images are decoded before the engine takes them
    answered: list[Answered] = []
    # Equally often on every rank, even if the last ranks have one question less.
    for start in range(0, -(-len(rows) // runtime.world_size), _ASKED_AT_ONCE):
        part = mine[start : start + _ASKED_AT_ONCE]
        answers = engine.generate(loader.stream(part, ahead), greedy, seeds=[0] * len(part))
        if sampling.n:  # decoded a second time, so that no image waits in memory
            own = seeds[start : start + _ASKED_AT_ONCE]
            more = engine.generate(loader.stream(part, ahead), sampling, own)
            answers = [[*a, *b] for a, b in zip(answers, more, strict=True)]
        lead = chat.template.lead  # a tag that the prompt has opened already
        texts = [[lead + chat.decode(c.token_ids.tolist()) for c in group] for group in answers]
        # A reward of the user's own may look at the images, so for it they are decoded again.
        prompts = loader.stream(part, ahead) if ":" in pool.spec else map(rows.graded, part)
        verdicts = _grade(runtime, pool, prompts, texts)
        answered += map(_answered, part, answers, texts, verdicts)
    loader.close()
    everyone = sorted(Answered(*a) for rank in runtime.gather_json(answered) for a in rank)
    return _figures(rows, everyone, sampling)


def _answered(
    index: int, completions: list[Completion], texts: list[str], verdicts: list[float]
) -> Answered:
    tokens = [len(c.token_ids) for c in completions]
    return Answered(
        index, verdicts[0], verdicts[1:], tokens[0], tokens[1:], keyword_counts(texts[0])
    )


def _grade(
    runtime: Runtime, pool: RewardPool, prompts: Iterable[Prompt], texts: list[list[str]]
) -> list[list[float]]:
    inputs = [
        pool.input_of(text, prompt)
        for prompt, group in zip(prompts, texts, strict=True)
        for text in group
    ]
    scored = pool.score(inputs)
    failures = Failures()
    failures.add(scored)
    failures = failures.of_all_ranks(runtime)
    # An accuracy of failed verdicts would read like that of a weak model.
    failures.check("evaluation", max_error_frac=pool.max_error_frac, timeout_s=pool.timeout_s)
    if failures.errors:
        runtime.say(failures.sentence("evaluation") + " (they count as wrong)")
    outputs = iter(scored)
    return [[float(next(outputs).is_right) for _ in group] for group in texts]


def _figures(rows: Sequence[Row], answers: Sequence[Answered], sampling: Sampling) -> Figures:
    count, n = len(answers), sampling.n
    greedy = [a.greedy for a in answers]
    figures: Figures = {
        "num_questions": count,
        "greedy": {
            "accuracy": sum(greedy) / count,
            "ci95": list(wilson_ci95(int(sum(greedy)), count)),
        },
        "response_tokens": {"greedy": sum(a.greedy_tokens for a in answers) / count},
        # per greedy answer: OpenVLThinker, arXiv v1, Figure 7
        "keywords": {
            word: sum(a.keywords[k] for a in answers) / count for k, word in enumerate(KEYWORDS)
        },
        "questions": {
            "id": [rows[a.row].id for a in answers],
            "source": [rows[a.row].source for a in answers],
            "greedy": greedy,
        },
    }
    sampled = [sum(a.sampled) / n for a in answers] if n else []
    if n:
        mean, half = mean_ci95(sampled)
        figures["sampled"] = {
            "temperature": sampling.temperature,
            "n": n,
            "accuracy": mean,
            "ci95": [max(0.0, mean - half), min(1.0, mean + half)],
        }
        tokens = sum(sum(a.sampled_tokens) for a in answers) / (n * count)
        figures["response_tokens"]["sampled"] = tokens
        figures["questions"]["sampled"] = sampled
    for name, key in (("by_source", "source"), ("by_kind", "kind")):
        places: dict[str, list[int]] = {}
        for place, answer in enumerate(answers):
            places.setdefault(getattr(rows[answer.row], key), []).append(place)
        figures[name] = {
            part: {"num": len(at), "greedy": sum(greedy[i] for i in at) / len(at)}
            | ({"sampled": sum(sampled[i] for i in at) / len(at)} if n else {})
            for part, at in sorted(places.items())
            if part
        }
    return figures


def read_held_out(reader: RowReader, config: EvaluateConfig, path: str) -> GoodRows:
    """Read the held-out questions. Collective; raises ValueError."""
    return reader.questions(path, max_tokens=config.max_prompt_tokens, limit=config.limit)


def measure_held_out(
    engine: Engine, reader: RowReader, config: EvaluateConfig, rows: GoodRows, pool: RewardPool
) -> Figures:
    """Measure on held-out questions, as [evaluate] says, when a stage has ended. Collective."""
    return evaluate_rows(engine, reader, rows, pool, sampling_of(config), config.seed)


def write_evaluation(folder: Path, figures: Figures, *, questions: str, model: str) -> None:
    """Write ``evaluation.json``, which the report reads, for a file of questions and a model."""
    head = {"split": Path(questions).stem, "model": model}
    write_json(folder / "evaluation.json", head | figures)


def sentence(figures: Figures) -> str:
    """Say the figures in one line."""
    low, high = figures["greedy"]["ci95"]
    text = f"greedy {figures['greedy']['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    if "sampled" in figures:
        low, high = figures["sampled"]["ci95"]
        text += f", sampled {figures['sampled']['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    length = figures["response_tokens"].get("sampled", figures["response_tokens"]["greedy"])
    return f"{text} on {figures['num_questions']} questions, {length:.1f} tokens per response"
