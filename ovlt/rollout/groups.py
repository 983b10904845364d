"""One rollout batch: prompts -> engine -> grader -> the same groups on every rank.

The images of the next batch are decoded while the engine samples this one. One prompt more is the
probe that proves which weights the engine samples from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovlt.config import GrpoConfig, RewardConfig
from ovlt.data.loader import Loader
from ovlt.data.sampler import Sampler
from ovlt.model.chat import Chat
from ovlt.reward.failures import Failures
from ovlt.reward.functions import soft_overlong_penalty
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Completion, Engine, request_seeds, sample_of, sampling_of
from ovlt.rollout.exchange import exchange_groups
from ovlt.rollout.sync import PROBE_SAMPLING, Proof, WeightSync
from ovlt.run.metrics import PhaseTimer
from ovlt.system.ahead import Meanwhile
from ovlt.system.runtime import Runtime
from ovlt.train.advantage import has_signal
from ovlt.types import Group, Prompt


@dataclass
class RolloutBatch:
    """The groups of one step, the same on all ranks, and what it took to get them."""

    groups: list[Group]
    drawn: int  # groups sampled, including those that dynamic sampling dropped
    no_signal_frac: float  # share of these whose rewards are all equal
    failures: Failures  # gradings without a verdict
    proof: Proof | None = None  # that the engine has the trainer's weights, from the first round

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens of all samples."""
        return sum(len(s.token_ids) for g in self.groups for s in g.samples)

    def metrics(self) -> dict[str, float]:
        """Rewards, lengths, and what had to be drawn."""
        samples = [s for g in self.groups for s in g.samples]
        return {
            "reward/mean": sum(s.reward for s in samples) / len(samples),
            "reward/errors": self.failures.errors,
            "reward/timeouts": self.failures.timeouts,
            "response/tokens_mean": sum(s.num_response_tokens for s in samples) / len(samples),
            "response/unfinished_frac": sum(not s.finished for s in samples) / len(samples),
            "groups/no_signal_frac": self.no_signal_frac,
            "groups/drawn": self.drawn,
            **(self.proof.metrics() if self.proof else {}),
        }


@dataclass
class Rollouts:
    """Draws graded groups. With dynamic sampling, only groups whose rewards differ are kept."""

    config: GrpoConfig
    reward: RewardConfig
    seed: int  # run.seed: decides the samples, with the step and the place in the batch
    runtime: Runtime
    chat: Chat
    engine: Engine
    sync: WeightSync
    pool: RewardPool
    loader: Loader[Prompt]
    sampler: Sampler
    timer: PhaseTimer
    # Grade while the engine is still at work on other answers. Not if it works on the cores that
    # graders need: their time limits are by the clock.
    grade_early: bool = False
    has_told_errors: bool = False  # the commonest error of a reward is said once

    def draw(self, step: int) -> RolloutBatch:
        """Sample and grade ``prompts_per_step`` groups. Collective.

        The engine is awake and was sent weights: the first round proves that it samples from them.
        Raises RuntimeError if it does not (``WeightSync.prove``), or if dynamic sampling finds too
        few groups in ``max_tries`` rounds, ValueError if too many gradings fail.
        """
        cfg, count = self.config, self.config.prompts_per_step
        # Without dynamic sampling one round is all; with it, rounds until there are enough groups.
        batch = RolloutBatch([], drawn=0, no_signal_frac=0.0, failures=Failures())
        without_signal = 0
        for attempt in range(cfg.max_tries if cfg.dynamic_sampling else 1):
            groups = self._round(step, attempt * count, batch)
            # A group whose rewards are all equal has advantage 0: nothing is learnt from it.
            useful = [g for g in groups if has_signal([s.reward for s in g.samples])]
            batch.drawn += len(groups)
            without_signal += len(groups) - len(useful)
            batch.groups += useful if cfg.dynamic_sampling else groups
            if len(batch.groups) >= count:
                break
        else:
            raise RuntimeError(
                f"dynamic sampling found {len(batch.groups)} of {count} groups with different "
                f"rewards in {cfg.max_tries} rounds: the questions are too easy or too hard for "
                "this model; change the data, raise grpo.max_tries, or set "
                "grpo.dynamic_sampling = false"
            )
        # The last round may bring more than are needed; ranks agree on which are left out.
        batch.groups = batch.groups[:count]
        batch.no_signal_frac = without_signal / batch.drawn
        batch.failures = self._checked(batch.failures, step)
        return batch

    def _checked(self, failures: Failures, step: int) -> Failures:
        """Return the failures of all ranks; say the first ones. ValueError if they are many."""
        # Each rank graded its own answers; all must come to the same decision.
        failures = failures.of_all_ranks(self.runtime)
        failures.check(
            f"step {step + 1}",
            max_error_frac=self.reward.max_error_frac,
            timeout_s=self.reward.timeout,
        )
        if failures.errors and not self.has_told_errors:
            self.has_told_errors = True
            self.runtime.say(failures.sentence(f"step {step + 1}") + " (they score 0)")
        return failures

    def _round(self, step: int, offset: int, batch: RolloutBatch) -> list[Group]:
        """Sample and grade the next ``prompts_per_step`` prompts, each rank its share.

        Adds to ``batch`` what could not be graded and, in the first round, the proof.
        """
        cfg, rollout = self.config, self.config.rollout
        rank, ranks = self.runtime.rank, self.runtime.world_size
        # Prompts: this rank's share of the batch, and the next batch's images in the background.
        with self.timer("data"):
            rows = self.sampler.take(cfg.prompts_per_step)  # the same on every rank
            mine = list(range(rank, len(rows), ranks))  # places in the batch
            prompts = self.loader.get([rows[i] for i in mine])
            upcoming = self.sampler.peek(cfg.prompts_per_step)
            self.loader.prefetch([upcoming[i] for i in mine])
        # Sample. Seeds come from the place in the batch, so that ranks do not matter; ``offset``
        # keeps the rounds of one step apart.
        seeds = request_seeds(self.seed, step, [offset + i for i in mine], rollout.n)
        version = step * cfg.updates_per_rollout  # optimizer steps behind the sampling weights
        groups = [Group(prompt, []) for prompt in prompts]
        samplings = [sampling_of(rollout)] * len(groups)
        probe = self.sync.probes[0]
        if among := batch.proof is None and self.engine.mixes_greedy:
            # The last prompt: it takes a place that a short response has left, and no time.
            prompts, samplings, seeds = (
                [*prompts, probe], [*samplings, PROBE_SAMPLING], [*seeds, 0],
            )  # fmt: skip

        def finished(place: int, answers: list[Completion]) -> None:
            if place == len(groups):
                return  # the probe
            group = groups[place]
            texts = [self.chat.decode(c.token_ids.tolist()) for c in answers]
            group.samples = [
                sample_of(group.prompt, c, text, version)
                for c, text in zip(answers, texts, strict=True)
            ]
            if self.grade_early:
                grading.put(group)

        # Grade: each rank its own answers, in worker processes that can be killed; at once, or in
        # a thread as groups are finished.
        with Meanwhile(lambda some: self._grade(some, batch.failures)) as grading:
            with self.timer("rollout"):
                answers = self.engine.generate(prompts, samplings, seeds, finished)
            if batch.proof is None:
                with self.timer("sync"):
                    answer = answers[-1][0] if among else self.sync.ask(probe)
                    batch.proof = self.sync.prove(answer)
            with self.timer("reward"):
                if not self.grade_early:
                    self._grade(groups, batch.failures)
                grading.finish()
        with self.timer("exchange"):
            everyone = exchange_groups(self.runtime, groups)
        # Groups come rank by rank; put them into the order of the batch, so that results do not
        # depend on the number of ranks.
        places = [i for r in range(ranks) for i in range(r, len(rows), ranks)]
        return [group for _, group in sorted(zip(places, everyone, strict=True), key=_place)]

    def _grade(self, groups: Sequence[Group], failures: Failures) -> None:
        samples = [s for g in groups for s in g.samples]
        # Rewards read the turn as a reader sees it, with a tag that the prompt has opened already.
        lead = self.chat.template.lead
        # A grading without a verdict scores 0 and is counted apart from the wrong answers.
        outputs = self.pool.score([self.pool.input_of(lead + s.text, s.prompt) for s in samples])
        failures.add(outputs)
        limit = self.config.rollout.max_response_tokens
        for sample, output in zip(samples, outputs, strict=True):
            sample.reward = output.score
            sample.reward_parts = dict(output.parts)
            sample.reason = output.reason
            if self.reward.overlong_tokens:
                penalty = soft_overlong_penalty(
                    sample.num_response_tokens, limit, self.reward.overlong_tokens
                )
                sample.reward += penalty
                sample.reward_parts["overlong"] = penalty


def _place(pair: tuple[int, Group]) -> int:
    return pair[0]
