"""Aggregates over seeds (Agarwal et al., 2021, arXiv:2108.13264)."""

import numpy as np
from numpy.typing import ArrayLike


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of the scores that are not NaN; NaN if there are none."""
    ordered = np.sort(np.asarray(scores, np.float64).ravel())
    ordered = ordered[~np.isnan(ordered)]
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean()) if ordered.size else float("nan")


def iqm_interval(scores: ArrayLike, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the IQM over seeds, drawn with a fixed seed."""
    values = np.asarray(scores, np.float64).ravel()
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    draws = np.random.default_rng(0).choice(values, (resamples, values.size))
    ordered, cut = np.sort(draws, axis=1), values.size // 4
    means = ordered[:, cut : values.size - cut].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
