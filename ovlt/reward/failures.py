"""Count gradings that reached no verdict, say why, and stop a run in which they are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ovlt.reward.functions import RewardOutput

if TYPE_CHECKING:
    from ovlt.system.runtime import Runtime


@dataclass
class Failures:
    """Gradings, and those that failed by their reason. Timeouts are counted apart."""

    gradings: int = 0
    timeouts: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])

    @property
    def errors(self) -> int:
        """Gradings in which the reward raised, died, or returned no valid output."""
        return sum(self.reasons.values())

    def add(self, outputs: Sequence[RewardOutput]) -> None:
        """Count these outputs, too."""
        self.gradings += len(outputs)
        failed = [output.reason for output in outputs if output.failed]
        self.timeouts += failed.count("timeout")
        self.reasons.update(reason[:300] for reason in failed if reason != "timeout")

    def of_all_ranks(self, runtime: Runtime) -> Failures:
        """Return the sum over ranks. Collective."""
        total = Failures()
        mine = [self.gradings, self.timeouts, dict(self.reasons)]
        for gradings, timeouts, reasons in runtime.gather_json(mine):
            total.gradings += gradings
            total.timeouts += timeouts
            total.reasons.update(reasons)
        return total

    def sentence(self, what: str) -> str:
        """Say how many failed, and the commonest reason."""
        reason, count = self.reasons.most_common(1)[0]
        often = "" if count == self.errors else f", most often ({count} times)"
        return f"{what}: {self.errors} of {self.gradings} gradings failed{often}: {reason}"

    def check(self, what: str, *, max_error_frac: float, timeout_s: float) -> None:
        """Raise ValueError if too large a share failed, or more than half were cut off."""
        if self.errors > max_error_frac * self.gradings:
            raise ValueError(
                f"{self.sentence(what)}. That is more than reward.max_error_frac = "
                f"{max_error_frac:g} of them: correct the reward, or raise the limit if such "
                "answers may count as wrong"
            )
        # A few timeouts are hostile answers; most of them are a broken reward.
        if self.timeouts > self.gradings / 2:
            raise ValueError(
                f"{what}: {self.timeouts} of {self.gradings} gradings timed out after "
                f"{timeout_s} s: the reward hangs, or reward.timeout is too short"
            )
