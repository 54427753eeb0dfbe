"""Aggregates over seeds and their bootstrap intervals (Agarwal et al., 2021, arXiv:2108.13264)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 3  # an interval from fewer seeds than that says nothing of other seeds
MANY = 1000  # seeds beyond which the IQM's interval is that of the normal distribution: there both are the same


class Estimate(NamedTuple):
    """An aggregate and its interval, or band; the bounds are NaN where there is none."""

    point: np.ndarray  # [...]
    low: np.ndarray  # [...]
    high: np.ndarray  # [...]


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of the scores that are not NaN; NaN if there are none."""
    ordered = np.sort(known(np.ravel(scores)))
    return float(_middle_mean(ordered)) if ordered.size else float("nan")


def bootstrap(statistic: Callable[..., np.ndarray], *groups: np.ndarray) -> Estimate:
    """A statistic of one or more groups, with its 95% percentile bootstrap interval.

    Each group is resampled by itself, with a fixed seed: with tasks as groups it is Agarwal et al.'s stratified
    bootstrap. The interval is NaN where a group has fewer than three members.

    Args:
        statistic: of all groups, each with a leading axis of resamples, [R, members, ...] → [R, ...].
        groups: [members, ...] each.
    """
    point = statistic(*(group[None] for group in groups))[0]
    if min(map(len, groups)) < FEWEST:
        return Estimate(point, *np.full((2, *np.shape(point)), np.nan))
    rng = np.random.default_rng(0)
    at_once = max(1, 2**22 // max(len(group) * group.size for group in groups))  # memory, of pairs of members too
    counts = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    drawn = [statistic(*(group[rng.integers(0, len(group), (n, len(group)))] for group in groups)) for n in counts]
    return Estimate(point, *np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))


def iqm_over_seeds(values: ArrayLike) -> Estimate:
    """The IQM of scores [seeds], or of each point of a curve [seeds, points], over the seeds that are not NaN there.

    With its 95% bootstrap interval, which is NaN from fewer than three seeds. From more than 1,000 it is that of the
    normal distribution, by the Winsorised variance (Tukey and McLaughlin, 1963). Points that know the same seeds share
    their resamples; those that know none are NaN.
    """
    values = np.asarray(values, np.float64)
    columns = values.reshape(len(values), math.prod(values.shape[1:]))
    mask = ~np.isnan(columns)
    result = np.full((3, columns.shape[1]), np.nan)
    for seeds in map(np.array, {tuple(column) for column in mask.T if column.any()}):
        same = (mask == seeds[:, None]).all(axis=0)
        found = columns[seeds][:, same]
        few = len(found) <= MANY
        result[:, same] = bootstrap(_iqm_of_resamples, found) if few else _iqm_of_many(found)
    return Estimate(*(x.reshape(values.shape[1:])[()] for x in result))


def _iqm_of_resamples(x: np.ndarray) -> np.ndarray:
    return _middle_mean(np.sort(x, axis=1), axis=1)


def _iqm_of_many(scores: np.ndarray) -> Estimate:
    ordered, quarter = np.sort(scores, axis=0), len(scores) // 4
    spread = np.clip(ordered, ordered[quarter], ordered[-1 - quarter]).std(axis=0, ddof=1)
    point, error = _middle_mean(ordered), 1.96 * spread / (0.5 * math.sqrt(len(scores)))
    return Estimate(point, point - error, point + error)


def mean_over_seeds(values: np.ndarray) -> Estimate:
    """The mean of each column of values [seeds, points], and a 95% interval of it by the normal distribution.

    Over the seeds that are not NaN there; the interval is NaN from fewer than three, the mean from none.
    """
    count = np.sum(~np.isnan(values), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=0) / count
        error = 1.96 * np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (count - 1) / count)
    error = np.where(count < FEWEST, np.nan, error)
    return Estimate(mean, mean - error, mean + error)


def quartiles_over_seeds(values: np.ndarray) -> Estimate:
    """The IQM of each column of values [seeds, points], between its quartiles. No column is all NaN."""
    return Estimate(np.array([iqm(column) for column in values.T]), *np.nanquantile(values, [0.25, 0.75], axis=0))


def performance_profile(scores: ArrayLike, thresholds: np.ndarray) -> Estimate:
    """The fraction of scores [seeds] above each threshold: Agarwal et al.'s run-score distribution, eq. 1."""
    return bootstrap(lambda x: (x[..., None] > thresholds).mean(axis=1), known(scores))


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> Estimate:
    """P(X > Y) + ½ P(X = Y) over all pairs of a score of x [seeds] and one of y [seeds]: Mann and Whitney's U / nm."""

    def probability(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sides = [
            [np.searchsorted(b, a, side).mean() for side in ("left", "right")]
            for a, b in zip(x, np.sort(y), strict=True)
        ]
        return np.mean(sides, axis=1) / y.shape[1]  # how many of y are below each of x; those that are equal count half

    return bootstrap(probability, known(x), known(y))


def decimals(*returns: ArrayLike) -> int:
    """How many decimals show three digits of the largest of some returns: 0.734, 1.52, 45.3; at least one.

    1 has three, as what is below it: it is the best mean where each return is 0 or 1.
    """
    sizes = np.abs([x for some in returns for x in np.ravel(some)])
    largest = sizes[np.isfinite(sizes)].max(initial=0.0)
    return int(np.clip(3 - math.ceil(math.log10(largest)), 1, 6)) if largest else 1


def return_text(value: float | np.ndarray, digits: int | None = None) -> str:
    """A return as people read it, with so many `decimals`, or with its own; "–" where there is none."""
    return "–" if np.isnan(value) else f"{value:,.{decimals(value) if digits is None else digits}f}"


def interval_text(low: float | np.ndarray, high: float | np.ndarray, digits: int | None = None) -> str:
    """ "low … high", with as many decimals as each other; "–" where there is none."""
    digits = decimals(low, high) if digits is None else digits
    return "–" if np.isnan(low) else f"{return_text(low, digits)} … {return_text(high, digits)}"


def known(scores: ArrayLike) -> np.ndarray:
    """The scores that are not NaN."""
    scores = np.asarray(scores, np.float64)
    return scores[~np.isnan(scores)]


def _middle_mean(ordered: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of the middle half of what is sorted along the axis."""
    count = ordered.shape[axis]
    return ordered.take(range(count // 4, count - count // 4), axis).mean(axis)
