"""When trials are judged, and which of them stop."""

from typing import NamedTuple

import numpy as np

from purejaxppo.errors import UsageError

PRUNERS = ("halving", "median", "none")


class Rungs(NamedTuple):
    """The environment steps per seed at which a trial is judged, the last being its end."""

    pruner: str
    steps: tuple[int, ...]
    factor: int  # of halving, one in `factor` goes on

    @classmethod
    def of(cls, pruner: str, count: int, factor: int, total_steps: int, per_update: int) -> "Rungs":
        """`halving`: total / factorᵏ; `median`: evenly spaced; `none`: the end alone.

        Args:
            total_steps: of a whole trial, per seed.
            per_update: the most steps per seed and update that a trial of the study has.

        Raises:
            UsageError: the first rung would come before the first update has ended.
        """
        if pruner == "none":
            return cls(pruner, (total_steps,), factor)
        if pruner == "halving":
            steps = [total_steps // factor**k for k in reversed(range(count))]
        else:
            steps = [total_steps * (k + 1) // count for k in range(count)]
        if steps[0] < per_update:
            nearer = ", a smaller --halving-factor" if pruner == "halving" else ""
            raise UsageError(
                f"rungs = {count}: the first would be at {steps[0]:,} of {total_steps:,} steps, and an update has "
                f"{per_update:,}; pass fewer --rungs{nearer} or more --total-steps."
            )
        return cls(pruner, tuple(steps), factor)

    def updates(self, rung: int, per_update: int) -> int:
        """Updates that a trial has made when it comes to a rung, counted from 1; 0 is its beginning."""
        return -(-self.steps[rung - 1] // per_update) if rung else 0

    def env_steps(self, rung: int, per_update: int) -> int:
        """The environment steps per seed of so many updates."""
        return self.updates(rung, per_update) * per_update

    def goes_on(self, number: int, all_scores: dict[int, float]) -> bool:
        """Whether a trial leaves a rung upwards, by the scores of all that have come there so far, by their numbers.

        `halving` keeps the best 1 in `factor` (asynchronous successive halving: Li et al., 2020, arXiv:1810.05934),
        and always the best, of equals the earlier; `median` those not below the median (Golovin et al., 2017).
        """
        score = all_scores[number]
        if not np.isfinite(score):
            return False
        known = {other: x for other, x in all_scores.items() if np.isfinite(x)}
        if self.pruner == "halving":
            better = sum((x, -other) > (score, -number) for other, x in known.items())
            return better < max(1, len(all_scores) // self.factor)
        return score >= float(np.median([*known.values()]))
