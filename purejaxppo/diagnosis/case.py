"""What the rules look at: a run's numbers, condensed to one for each seed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.diagnosis.probe import ProbeResult
from purejaxppo.rundir.contents import RunContents
from purejaxppo.types import traits_of

FEWEST_ROWS = 8  # of metrics.csv: with fewer, nothing is said of how numbers develop
LEARNT = 2.0  # times a row's noise by which the late returns exceed the early ones, see `Case.gain`


class Symptom(NamedTuple):
    """What speaks for one rule."""

    seeds: np.ndarray  # [seeds] bool: where it is seen
    evidence: str  # the metric and its values
    update: int | None = None  # from when on, or when


@dataclass(frozen=True)
class Case:
    """One run."""

    run: RunContents
    probe: ProbeResult | None = None

    @property
    def rows(self) -> int:
        return len(self.run.metrics.update)

    def metric(self, name: str) -> np.ndarray:
        """[seeds, rows]; NaN if it was not logged, or [seeds, 1] if too rarely."""
        values = self.run.metrics.metric(name)
        return values if self.rows >= FEWEST_ROWS else np.full((len(values), 1), np.nan)

    @property
    def has_critic(self) -> bool:
        """Whether the method does more than to compare the returns of policies, as CEM and CMA-ES do."""
        kind: Any = ALGORITHMS.get(self.run.algo)
        return not (kind and traits_of(kind).evolves)

    def number(self, name: str, otherwise: float = np.nan) -> float:
        """A setting."""
        try:
            return float(self.run.settings.get(name, otherwise))
        except ValueError:
            return otherwise

    def is_set(self, name: str) -> bool:
        return self.run.settings.get(name) == "true"

    def median(self, name: str, begin: float = 0.0, end: float = 1.0) -> np.ndarray:
        """[seeds] The median over the rows of a part of the run; NaN where there is none."""
        return over_rows(np.nanmedian, self.metric(name)[:, int(begin * self.rows) : max(int(end * self.rows), 1)])

    @cached_property
    def returns(self) -> np.ndarray:
        """[seeds, rows] of training."""
        return self.run.metrics.metric("episode_return")

    @cached_property
    def early(self) -> np.ndarray:
        """[seeds] The mean return of the first tenth of the rows in which episodes ended, of two to five of them."""
        return self._part(lambda known: known[: min(max(2, known.size // 10), 5)])  # before a fast learner has learnt

    @cached_property
    def late(self) -> np.ndarray:
        """[seeds] That of the last fifth."""
        return self._part(lambda known: known[-max(2, known.size // 5) :])

    @cached_property
    def noise(self) -> np.ndarray:
        """[seeds] The noise of a row's return; NaN if little is known.

        It is the standard deviation of what changes from one row to the next, by √2: of a curve that only rises it is
        small, and one jump of J in n rows makes it J / √(2n).
        """
        noise = np.full(len(self.run.seeds), np.nan)
        for i, row in enumerate(self.returns):
            known = row[~np.isnan(row)]
            if known.size >= FEWEST_ROWS:
                noise[i] = np.diff(known).std() / np.sqrt(2)
        scale = 1e-3 * np.maximum(np.abs(self.early), np.abs(self.late))
        return np.maximum(np.maximum(noise, scale), 1e-12)

    @cached_property
    def gain(self) -> np.ndarray:
        """[seeds] `late` - `early` in units of `noise`; NaN if nothing is known."""
        return (self.late - self.early) / self.noise

    @cached_property
    def learnt(self) -> np.ndarray:
        """[seeds] Whether the returns have risen beyond their noise, or training began with what another run learnt."""
        if self.run.settings.get("init_from"):
            return self.all()
        return np.nan_to_num(self.gain) > LEARNT

    @cached_property
    def lengths(self) -> np.ndarray:
        """[seeds] The median length of episodes."""
        return over_rows(np.nanmedian, self.run.metrics.metric("episode_length"))

    def only(self, which: np.ndarray) -> "Case":
        """The same of some seeds alone, `which` [seeds] bool."""
        seeds = [seed for seed, has in zip(self.run.seeds, which, strict=True) if has]
        columns = {name: x[which] for name, x in self.run.metrics.columns.items()}
        summary = self.run.summary
        if summary is not None:
            scores = np.array(summary["eval_return"]["per_seed"])[which].tolist()
            summary = {**summary, "eval_return": {**summary["eval_return"], "per_seed": scores}}
        metrics = self.run.metrics._replace(seeds=seeds, columns=columns)
        return Case(self.run._replace(seeds=seeds, metrics=metrics, summary=summary), self.probe)

    def all(self) -> np.ndarray:
        return np.ones(len(self.run.seeds), bool)

    def _part(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        found = [row[~np.isnan(row)] for row in self.returns]
        return np.array([of(known).mean() if known.size >= 2 else np.nan for known in found])


def over_rows(statistic: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
    """A statistic of each row that is not all NaN; of others NaN."""
    return np.array([statistic(row) if not np.isnan(row).all() else np.nan for row in values])


def span(values: np.ndarray) -> str:
    """ "0.02", "0.02 … 0.3": the known ones of some numbers."""
    known = values[np.isfinite(values)]
    if not known.size:
        return "–"
    low, high = brief(known.min()), brief(known.max())
    return low if low == high else f"{low} … {high}"


def brief(value: float) -> str:
    """A number with three digits: 0.0215, 1,234."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
