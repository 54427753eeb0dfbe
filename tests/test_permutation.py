"""The sortless shuffle: a permutation for every size, and as random as a shuffle of minibatches has to be."""

import jax
import numpy as np
import pytest
from scipy import stats

from purejaxppo.optimize.permutation import permutation


def draw(size: int, count: int, seed: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, size)))(keys))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 100, 257, 512, 1000, 4096])
def test_every_index_occurs_once(size: int) -> None:
    drawn = draw(size, 50)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(size), (50, 1)))
    if size > 7:
        assert len({row.tobytes() for row in drawn}) == 50


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_are_equally_likely(size: int) -> None:
    """χ² over all size! orders."""
    count = 24_000
    _, counts = np.unique(draw(size, count, seed=size), axis=0, return_counts=True)
    assert len(counts) == np.prod(np.arange(1, size + 1))
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("size", [13, 64, 128])
def test_each_index_goes_anywhere_equally_often(size: int) -> None:
    count = 300 * size
    drawn = draw(size, count)
    table = np.stack([np.bincount(column, minlength=size) for column in drawn.T])  # doubly stochastic: (size-1)² free
    statistic = np.sum((table - count / size) ** 2) / (count / size)
    assert 1e-4 < stats.chi2.sf(statistic, (size - 1) ** 2) < 1 - 1e-4


@pytest.mark.parametrize(("size", "minibatches"), [(128, 4), (96, 3), (60, 12)])
def test_pairs_meet_in_a_minibatch_as_often_as_chance_has_it(size: int, minibatches: int) -> None:
    """Two given samples share a minibatch with probability (m - 1) / (N - 1), m = N / minibatches.

    Most of all neighbours, and the mirrored pairs that the shuffle swaps.
    """
    count, part = 20_000, size // minibatches
    where = np.argsort(draw(size, count), axis=1) // part  # [count, N] the minibatch of each sample
    chance = (part - 1) / (size - 1)
    pairs = [(i, i + 1) for i in range(0, size - 1, 7)] + [(i, size - 1 - i) for i in range(0, size // 2, 5)]
    together = np.array([np.sum(where[:, i] == where[:, j]) for i, j in pairs])
    z = (together - count * chance) / np.sqrt(count * chance * (1 - chance))
    assert np.abs(z).max() < 4.5
    assert 0.3 < np.mean(z**2) < 2.0


def test_one_shuffle_tells_nothing_of_the_next() -> None:
    """The rank correlation of consecutive epochs' orders is that of independent ones: mean 0, variance 1/(N-1)."""
    size, count = 256, 4_000
    drawn = draw(size, count).astype(np.float64) - (size - 1) / 2
    correlation = np.sum(drawn[1:] * drawn[:-1], axis=1) / np.sum(drawn[0] ** 2)
    assert abs(np.mean(correlation)) < 4 / np.sqrt(count * (size - 1))
    assert np.var(correlation) * (size - 1) == pytest.approx(1.0, abs=0.15)
