"""Population-based training (Jaderberg et al., 2017, arXiv:1711.09846): settings that change while a run learns."""

import itertools
import math
from typing import Any

import numpy as np

from purejaxppo.config import Config
from purejaxppo.presets import with_settings
from purejaxppo.rundir.snapshot import Arrays
from purejaxppo.sweeps.axes import Settings
from purejaxppo.tuning.rungs import Rungs
from purejaxppo.tuning.search import FAILED, FINISHED, RUNNING, Search, Trial
from purejaxppo.tuning.space import Dimension, Space

TRUNCATION = 0.2  # of the population, at either end: the worst copy the best
FACTORS = (0.8, 1.2)  # by one of which a copied number is multiplied
EPISODES = (
    "rollout.",
    "reward_normalizer.discounted_return",
)  # which a member keeps, as its key, when it copies another


class Population(Search):
    """Members that are all trained from rung to rung; between two, the worst copy the best and change their numbers.

    Each member of each generation is a trial of the study.
    """

    def _judge(self) -> None:
        trained, self._trained = sorted(self._trained, key=lambda trial: trial.number), []
        for trial in trained:
            self._end(trial, FINISHED if math.isfinite(trial.score) else FAILED)

    def _fill(self) -> None:
        """The first generation, or the next."""
        size, last = self.options.trials, self.trials[-self.options.trials :]
        if not last:
            for _ in range(size):
                self._ask({})
        elif all(trial.status != RUNNING for trial in last) and self._next_is_affordable(last):
            rng = np.random.default_rng([self.seed, len(self.trials)])
            scores = np.array([trial.score for trial in last])
            parents, settings = exploit_and_explore(rng, scores, [trial.settings for trial in last], self.space)
            for own, parent, values in zip(last, parents, settings, strict=True):
                self._ask(values)
                child = self.trials[-1]
                child.own, child.parent, child.scores = own, last[parent], [*last[parent].scores]

    @property
    def needed(self) -> set[int]:
        """See `Search`: all that the present generation comes from, as long as a part of it is to be trained."""
        last = [trial for trial in self.trials[-self.options.trials :] if trial.rung < len(self.rungs.steps)]
        begun = {trial.number for trial in last if trial.rung and trial not in self._untrained}
        return begun.union(*(self.sources(trial) for trial in self._untrained if trial.rung))

    @property
    def _untrained(self) -> list[Trial]:
        return [trial for trial in self.trials[-self.options.trials :] if not trial.env_steps]

    def _next_is_affordable(self, last: list[Trial]) -> bool:
        furthest = max(last, key=lambda trial: trial.rung)
        if furthest.rung == len(self.rungs.steps):
            return False
        return self.env_steps + self.options.trials * self._cost(furthest) <= self.options.budget

    @property
    def _leader(self) -> Trial | None:
        return None  # nobody is to come to its end before the others


def exploit_and_explore(
    rng: np.random.Generator, scores: np.ndarray, settings: list[Settings], space: Space
) -> tuple[np.ndarray, list[Settings]]:
    """Truncation selection: each of the worst 20% takes the place of one of the best 20%, and perturbs its numbers.

    A score that is not finite counts as the lowest.

    Args:
        scores: [members]
        settings: of each member.

    Returns:
        Whose state each member goes on from, [members] int, and with which settings.
    """
    known = np.where(np.isfinite(scores), scores, -np.inf)
    ranked = np.argsort(known, kind="stable")
    few = max(1, int(TRUNCATION * len(scores)))
    parents, new = np.arange(len(scores)), [dict(own) for own in settings]
    for member in ranked[:few]:
        better = rng.choice(ranked[-few:])
        if known[better] == known[member]:  # all are alike
            continue
        parents[member] = better
        parent = settings[parents[member]]
        new[member] = {name: perturbed(rng, space[name], parent[name]) for name in space}
    return parents, new


def perturbed(rng: np.random.Generator, dimension: Dimension, value: Any) -> Any:
    """A number × 0.8 or 1.2, or 1 minus it on such a scale, within its range; of choices a neighbour or itself."""
    if dimension.choices:
        i = dimension.choices.index(value) + int(rng.integers(-1, 2))
        return dimension.choices[min(max(i, 0), len(dimension.choices) - 1)]
    low, high = dimension.bounds
    return dimension.setting(min(max(dimension.drawn(value) * rng.choice(FACTORS), low), high))


def inherited(own: Arrays, parent: Arrays) -> Arrays:
    """The state of a member that goes on from another: networks, moments and normalisers are the parent's.

    Where a seed had failed, its episodes are the parent's, too: its own may be those that it failed in.
    """
    failed = own["failure.cause"] > 0  # [seeds]

    def of(path: str, x: np.ndarray) -> np.ndarray:
        if path.startswith(EPISODES):
            return np.where(failed.reshape(-1, *(1,) * (x.ndim - 1)), x, own[path])
        return own[path] if path == "key" else x

    return {path: of(path, x) for path, x in parent.items()}


def scheduled(config: Config, trial: Trial, rungs: Rungs) -> Config:
    """The config whose numbers change as those of a trial's line did: it and those whose states it goes back to.

    A trial that goes back to none keeps the stages that the study has been given.
    """
    line = [trial]
    while line[0].parent is not None:
        line.insert(0, line[0].parent)
    first, each, stages = line[0].settings, config.steps_per_update, []
    for rung, (before, after) in enumerate(itertools.pairwise(line), 1):
        changes = [f"{name}={x!r}" for name, x in after.settings.items() if x != before.settings[name]]
        if changes:
            stages.append(" ".join([str(rungs.env_steps(rung, each)), *changes]))
    return with_settings(config, first).replace(stages=tuple(stages) or config.stages)
