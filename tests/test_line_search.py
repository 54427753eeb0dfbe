"""Backtracking against a Python loop over tables of what each candidate would give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import quick_jit

from purejaxppo.optimize.line_search import backtrack

THETA = np.array([0.1, -2.0, 3.5, -0.0], np.float32)
STEP = np.array([1.0, 0.5, -0.25, 2.0], np.float32)
FACTOR, MAX_KL, MAX_BACKTRACKS = 0.7, 1.0, 6


def search(gains, kls, theta=THETA, step=STEP, max_kl=MAX_KL, factor=FACTOR, max_backtracks=MAX_BACKTRACKS):
    """The j-th candidate, told by how far it is from θ, has the j-th entries of the tables."""

    def evaluate(candidate):
        fraction = (candidate[3] - theta[3]) / step[3]
        j = jnp.round(jnp.log(fraction) / jnp.log(factor)).astype(jnp.int32)
        return gains[j], kls[j]

    return backtrack(evaluate, theta, step, max_kl, factor, max_backtracks)


def first_acceptable(gains, kls, max_kl=MAX_KL):
    """(accepted, j) by the rule: finite, KL within the bound, gain above 0."""
    for j, (gain, kl) in enumerate(zip(gains, kls, strict=True)):
        if np.isfinite(gain) and np.isfinite(kl) and kl <= max_kl and gain > 0:
            return True, j
    return False, len(gains) - 1


def tables(count):
    rng = np.random.default_rng(0)
    shape = (count, MAX_BACKTRACKS + 1)
    gains = rng.choice([-1.0, 0.0, 0.5, 2.0, np.nan, np.inf, -np.inf], shape, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    kls = rng.choice([0.0, 0.5, 1.0, 1.0001, 3.0, np.nan, np.inf], shape)
    return gains.astype(np.float32), kls.astype(np.float32)


def bits(x):
    return np.asarray(x).view(np.int32)


def test_the_first_acceptable_fraction_is_taken():
    """500 tables side by side: each search is the Python loop's, however long its neighbours go on."""
    gains, kls = tables(500)
    theta, found = quick_jit(jax.vmap(search))(gains, kls)
    expected = [first_acceptable(*table) for table in zip(gains, kls, strict=True)]
    accepted, j = (np.array(x) for x in zip(*expected, strict=True))
    assert 0.05 < accepted.mean() < 0.95
    assert len(set(j[accepted])) == MAX_BACKTRACKS + 1

    np.testing.assert_array_equal(found.accepted, accepted)
    np.testing.assert_array_equal(found.backtracks, j)
    np.testing.assert_allclose(found.fraction, FACTOR**j, rtol=1e-6)
    np.testing.assert_array_equal(found.gain, np.take_along_axis(gains, j[:, None], 1)[:, 0])
    np.testing.assert_array_equal(found.kl, np.take_along_axis(kls, j[:, None], 1)[:, 0])
    np.testing.assert_allclose(theta[accepted], (THETA + FACTOR ** j[:, None] * STEP)[accepted], rtol=1e-6)
    np.testing.assert_array_equal(bits(theta)[~accepted], np.broadcast_to(bits(THETA), theta[~accepted].shape))


def test_each_search_of_a_batch_is_the_lone_one():
    gains, kls = tables(24)
    together = quick_jit(jax.vmap(search))(gains, kls)
    lone = quick_jit(search)
    for i in range(len(gains)):
        for a, b in zip(jax.tree.leaves(lone(gains[i], kls[i])), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(a, b[i])


def test_the_full_step_is_tried_first_and_whole():
    theta, found = search(jnp.ones(7), jnp.zeros(7))
    np.testing.assert_array_equal(theta, THETA + STEP)
    assert (float(found.fraction), int(found.backtracks), bool(found.accepted)) == (1.0, 0, True)


@pytest.mark.parametrize(("gain", "kl"), [(-1.0, 0.0), (0.0, 0.0), (1.0, 2.0), (np.nan, 0.0), (1.0, np.nan)])
def test_where_no_candidate_will_do_theta_is_returned_bit_for_bit(gain, kl):
    """Negative zeros, too."""
    theta, found = search(jnp.full(7, gain), jnp.full(7, kl))
    np.testing.assert_array_equal(bits(theta), bits(THETA))
    assert not found.accepted
    assert int(found.backtracks) == MAX_BACKTRACKS


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_is_never_taken(poison):
    """Whatever the surrogate says of it."""
    step = np.where(np.arange(4) == 1, np.float32(poison), STEP)
    theta, found = backtrack(lambda _: (jnp.ones(()), jnp.zeros(())), THETA, step, MAX_KL, FACTOR, MAX_BACKTRACKS)
    np.testing.assert_array_equal(bits(theta), bits(THETA))
    assert not found.accepted


def test_without_backtracks_the_full_step_is_all_there_is():
    gains = jnp.asarray([-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    theta, found = search(gains, jnp.zeros(7), max_backtracks=0)
    np.testing.assert_array_equal(theta, THETA)
    assert not found.accepted
    assert search(-gains, jnp.zeros(7), max_backtracks=0)[1].accepted


def test_the_last_backtrack_counts():
    gains = jnp.asarray([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
    assert not search(gains, jnp.zeros(7), max_backtracks=2)[1].accepted
    assert search(gains, jnp.zeros(7), max_backtracks=3)[1].accepted


def test_an_infinite_bound_lets_any_finite_kl_pass():
    kls = jnp.asarray([np.inf, np.nan, 1e30, 0.0, 0.0, 0.0, 0.0])
    _, found = search(jnp.ones(7), kls, max_kl=np.inf)
    assert int(found.backtracks) == 2


def test_a_quadratic_is_searched_as_by_a_python_loop():
    """A concave gain that the full step overshoots, and a KL that grows with the square of the step."""
    steps = (4.0 * np.random.default_rng(1).standard_normal((200, 4))).astype(np.float32)

    def evaluate(theta):
        change = theta - THETA
        return change.sum() - (change**2).sum(), 0.5 * (change**2).sum()

    theta, found = quick_jit(jax.vmap(lambda step: backtrack(evaluate, THETA, step, 0.3, 0.5, 8)))(steps)
    for i, step in enumerate(steps.astype(np.float64)):
        candidates = [evaluate(THETA + 0.5**j * step) for j in range(9)]
        margin = min(min(abs(gain), abs(kl - 0.3)) for gain, kl in candidates)
        if margin < 1e-5:  # rounding may decide either way
            continue
        accepted, j = first_acceptable(*zip(*candidates, strict=True), max_kl=0.3)
        assert bool(found.accepted[i]) == accepted
        assert int(found.backtracks[i]) == j
        np.testing.assert_allclose(theta[i], THETA + accepted * 0.5**j * step, atol=1e-5)
    assert 0 < np.mean(found.accepted) < 1
