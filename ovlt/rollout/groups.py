"""One rollout batch: prompts -> engine -> grader -> the same groups on every rank.

The images of the next batch are decoded while the engine samples this one.
"""

from __future__ import annotations

from typing import Any

from ovlt.config import Recipe
from ovlt.data.loader import Loader
from ovlt.data.sampler import Sampler
from ovlt.model.load import ModelFolder
from ovlt.reward.functions import RewardInput, soft_overlong_penalty
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine, request_seeds, sample_of
from ovlt.rollout.exchange import exchange_groups
from ovlt.run.metrics import PhaseTimer
from ovlt.system.runtime import Runtime
from ovlt.train.advantage import has_signal
from ovlt.types import Group, Prompt


class Rollouts:
    """Draws graded groups. With dynamic sampling, only groups whose rewards differ are kept."""

    def __init__(
        self,
        runtime: Runtime,
        recipe: Recipe,
        folder: ModelFolder,
        engine: Engine,
        pool: RewardPool,
        loader: Loader[Prompt],
        sampler: Sampler,
        timer: PhaseTimer,
    ):
        self.runtime, self.recipe, self.folder = runtime, recipe, folder
        self.engine, self.pool, self.loader = engine, pool, loader
        self.sampler, self.timer = sampler, timer

    def draw(self, step: int, *, version: int) -> tuple[list[Group], dict[str, float]]:
        """``prompts_per_step`` groups, the same on all ranks, and counts for the log. Collective.

        Raises RuntimeError when dynamic sampling finds too few groups in ``max_tries`` rounds, or
        when most gradings time out.
        """
        cfg = self.recipe.grpo
        wanted = cfg.prompts_per_step
        kept: list[Group] = []
        drawn = silent = 0
        timeouts = self.pool.timeouts
        for attempt in range(cfg.max_tries if cfg.dynamic_sampling else 1):
            groups = self._round(step, attempt * wanted, version)
            drawn += len(groups)
            useful = [g for g in groups if has_signal([s.reward for s in g.samples])]
            silent += len(groups) - len(useful)
            kept += useful if cfg.dynamic_sampling else groups
            if len(kept) >= wanted:
                break
        else:
            raise RuntimeError(
                f"dynamic sampling found {len(kept)} of {wanted} groups with different rewards in "
                f"{cfg.max_tries} rounds: the questions are too easy or too hard for this model; "
                "change the data, raise grpo.max_tries, or set grpo.dynamic_sampling = false"
            )
        late = sum(self.runtime.gather_json(self.pool.timeouts - timeouts))
        if late > drawn * cfg.rollout.n / 2:
            raise RuntimeError(
                f"{late} of {drawn * cfg.rollout.n} gradings timed out after {cfg.reward.timeout} "
                "s: the reward function hangs, or grpo.reward.timeout is too short"
            )
        counts = {"groups": drawn, "no_signal_frac": silent / drawn, "timeouts": late}
        return kept[:wanted], counts

    def _round(self, step: int, offset: int, version: int) -> list[Group]:
        cfg, rollout = self.recipe.grpo, self.recipe.grpo.rollout
        rank, ranks = self.runtime.rank, self.runtime.world_size
        with self.timer("data"):
            batch = self.sampler.take(cfg.prompts_per_step)
            mine = list(range(rank, len(batch), ranks))
            prompts = self.loader.get([batch[i] for i in mine])
            upcoming = self.sampler.peek(cfg.prompts_per_step)
            self.loader.prefetch([upcoming[i] for i in mine])
        with self.timer("rollout"):
            completions = self.engine.generate(
                prompts,
                n=rollout.n,
                seeds=request_seeds(
                    self.recipe.run.seed, step, [offset + i for i in mine], rollout.n
                ),
                temperature=rollout.temperature,
                max_tokens=rollout.max_response_tokens,
            )
        groups = [
            Group(
                prompt,
                [
                    sample_of(prompt, c, self.folder.chat.decode(c.token_ids.tolist()), version)
                    for c in answers
                ],
            )
            for prompt, answers in zip(prompts, completions, strict=True)
        ]
        with self.timer("reward"):
            self._grade(groups)
        with self.timer("exchange"):
            everyone = exchange_groups(self.runtime, groups)
        # rank-major -> the order of the batch, so results do not depend on the number of ranks
        places = [i for r in range(ranks) for i in range(r, len(batch), ranks)]
        ordered: list[Any] = [None] * len(batch)
        for place, group in zip(places, everyone, strict=True):
            ordered[place] = group
        return ordered

    def _grade(self, groups: list[Group]) -> None:
        cfg = self.recipe.grpo
        samples = [s for g in groups for s in g.samples]
        outputs = self.pool.score([RewardInput.of(s.text, s.prompt) for s in samples])
        limit = cfg.rollout.max_response_tokens
        for sample, output in zip(samples, outputs, strict=True):
            sample.reward = output.score
            sample.reward_parts = dict(output.parts)
            sample.reason = output.reason
            if cfg.reward.overlong_tokens:
                penalty = soft_overlong_penalty(
                    sample.num_response_tokens, limit, cfg.reward.overlong_tokens
                )
                sample.reward += penalty
                sample.reward_parts["overlong"] = penalty


def rollout_metrics(groups: list[Group], drawn: dict[str, float]) -> dict[str, float]:
    """What a rollout batch says by itself: rewards, lengths, and what had to be drawn for it."""
    samples = [s for g in groups for s in g.samples]
    return {
        "reward/mean": sum(s.reward for s in samples) / len(samples),
        "reward/timeouts": drawn["timeouts"],
        "response/tokens_mean": sum(s.num_response_tokens for s in samples) / len(samples),
        "response/unfinished_frac": sum(not s.finished for s in samples) / len(samples),
        "groups/no_signal_frac": drawn["no_signal_frac"],
        "groups/drawn": drawn["groups"],
    }
