"""Advantages, value targets and returns against float64 sums written from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.advantages import cut, explained_variance, gae, monte_carlo_returns, standardize, td_targets
from purejaxppo.errors import UsageError

T, B = 13, 10_000
DISCOUNTS = [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7), (0.73, 1.0), (1.0, 0.4)]


def random_rollout(seed, steps=T, envs=B):
    """Rewards, values and V(s') of scale 1, with ends of episodes as often as every second step or never."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.standard_normal((3, steps, envs))
    often = rng.uniform(0.0, 0.5, (2, 1, envs)) * (rng.random((2, 1, envs)) < 0.8)
    terminated, truncated = rng.random((2, steps, envs)) < often
    return rewards, values, next_values, terminated, terminated | truncated


def consistent(values, next_values, done):
    """V(s'_t) is V(s_{t+1}) within an episode."""
    following = np.concatenate([values[1:], next_values[-1:]])
    return np.where(done, next_values, following)


def gae_sum(rewards, values, next_values, terminated, done, gamma, gae_lambda):
    """A_t = Σ_l (γλ)^l δ_{t+l}, up to and with the first step at which the data ends."""
    deltas = rewards + gamma * np.where(terminated, 0.0, next_values) - values
    advantages = np.zeros_like(deltas)
    for t in range(len(deltas)):
        alive = np.ones(deltas.shape[1])
        for k in range(t, len(deltas)):
            advantages[t] += alive * (gamma * gae_lambda) ** (k - t) * deltas[k]
            alive = alive * ~done[k]
    return advantages


def discounted_sum(rewards, next_values, terminated, done, gamma):
    """G_t = Σ_l γ^l r_{t+l}, and γ^n V(s') where the data ends after n steps without a terminal state."""
    returns = np.zeros_like(rewards)
    for t in range(len(rewards)):
        alive = np.ones(rewards.shape[1])
        for k in range(t, len(rewards)):
            returns[t] += alive * gamma ** (k - t) * rewards[k]
            ends = (done[k] | (k == len(rewards) - 1)) & ~terminated[k]
            returns[t] += alive * ends * gamma ** (k - t + 1) * next_values[k]
            alive = alive * ~done[k]
    return returns


def assert_close(actual, expected):
    error = np.abs(np.asarray(actual, np.float64) - expected) / np.maximum(1.0, np.abs(expected))
    assert error.max() <= 1e-5


@pytest.mark.parametrize(("gamma", "gae_lambda"), DISCOUNTS)
def test_gae_is_the_discounted_sum_of_td_errors(gamma, gae_lambda):
    data = random_rollout(round(100 * gamma + 7 * gae_lambda))
    assert_close(gae(*data, gamma, gae_lambda), gae_sum(*data, gamma, gae_lambda))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99, 1.0])
def test_monte_carlo_returns_are_discounted_sums_of_rewards(gamma):
    rewards, _, next_values, terminated, done = random_rollout(round(100 * gamma))
    actual = monte_carlo_returns(rewards, next_values, terminated, done, gamma)
    assert_close(actual, discounted_sum(rewards, next_values, terminated, done, gamma))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_td_targets_bootstrap_unless_terminated(gamma):
    rewards, _, next_values, terminated, _ = random_rollout(3)
    expected = rewards + gamma * (1.0 - terminated) * next_values
    assert_close(td_targets(rewards, next_values, terminated, gamma), expected)


def test_random_masks_cover_every_way_to_end():
    """The random data holds steps that only terminate, only truncate and do both, and episodes that do not end."""
    terminated, done = random_rollout(0)[3:]
    assert terminated.any()
    assert (done & ~terminated).any()
    assert (~done.any(axis=0)).any()
    assert len({column.tobytes() for column in (terminated + 2 * done).T}) > 0.5 * B


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values, next_values, terminated, done = random_rollout(4)
    next_values = consistent(values, next_values, done)
    expected = discounted_sum(rewards, next_values, terminated, done, 0.97) - values
    assert_close(gae(rewards, values, next_values, terminated, done, 0.97, 1.0), expected)


def test_gae_with_lambda_zero_is_the_td_error():
    rewards, values, next_values, terminated, done = random_rollout(5)
    expected = rewards + 0.97 * np.where(terminated, 0.0, next_values) - values
    assert_close(gae(rewards, values, next_values, terminated, done, 0.97, 0.0), expected)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_true_values_of_a_constant_reward_leave_no_advantage_however_episodes_are_truncated(gae_lambda):
    done = random_rollout(6)[4]
    ones = np.ones((T, B))
    values = 0.5 / (1 - 0.9) * ones
    advantages = gae(0.5 * ones, values, values, np.zeros_like(done), done, 0.9, gae_lambda)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-5)
    returns = monte_carlo_returns(0.5 * ones, values, np.zeros_like(done), done, 0.9)
    np.testing.assert_allclose(returns, values, rtol=1e-5)


def test_termination_without_a_value_differs_from_truncation_by_the_bootstrap():
    """One step: truncated, it adds γ V(s'); terminated, or both, it does not."""
    terminated, truncated = np.array([[True, False, True, False]]), np.array([[False, True, True, False]])
    ones = np.ones((1, 4))
    advantages = gae(ones, ones, 10 * ones, terminated, terminated | truncated, 0.5, 0.9)
    np.testing.assert_allclose(advantages, [[0.0, 5.0, 0.0, 5.0]])


def test_gae_is_the_same_plain_jitted_and_vmapped():
    data = [np.stack(x) for x in zip(*(random_rollout(seed, T, 32) for seed in range(4)), strict=True)]
    gammas, lambdas = np.array([0.9, 0.99, 1.0, 0.5], np.float32), np.array([0.95, 0.0, 1.0, 0.7], np.float32)
    batched = jax.jit(jax.vmap(gae))(*data, gammas, lambdas)
    for i in range(4):
        arguments = (*(x[i] for x in data), gammas[i], lambdas[i])
        plain = gae(*arguments)
        np.testing.assert_allclose(jax.jit(gae)(*arguments), plain, atol=1e-6)
        np.testing.assert_allclose(batched[i], plain, atol=1e-6)
    assert batched.dtype == jnp.float32


def test_gae_of_single_environments_is_gae_of_them_together():
    data = random_rollout(8, T, 32)
    columns = jax.vmap(lambda *x: gae(*x, 0.99, 0.95), in_axes=1, out_axes=1)(*data)
    np.testing.assert_allclose(columns, gae(*data, 0.99, 0.95), atol=1e-6)


@pytest.mark.parametrize("index", range(5))
def test_gae_refuses_mismatched_shapes(index):
    """Both a transposed array and one that would broadcast."""
    for shape in [(3, 4), (4, 1), (1, 3), (4,)]:
        shapes = [(4, 3)] * 5
        shapes[index] = shape
        with pytest.raises(UsageError, match="shape"):
            gae(*(np.zeros(s) for s in shapes), 0.99, 0.95)
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_the_value_after_a_terminal_state_does_not_leak(poison):
    rewards, values, next_values, terminated, done = random_rollout(9)
    poisoned = np.where(terminated, poison, next_values)
    np.testing.assert_array_equal(
        gae(rewards, values, poisoned, terminated, done, 0.99, 0.95),
        gae(rewards, values, next_values, terminated, done, 0.99, 0.95),
    )
    np.testing.assert_array_equal(
        td_targets(rewards, poisoned, terminated, 0.99), td_targets(rewards, next_values, terminated, 0.99)
    )
    np.testing.assert_array_equal(
        monte_carlo_returns(rewards, poisoned, terminated, done, 0.99),
        monte_carlo_returns(rewards, next_values, terminated, done, 0.99),
    )


def test_monte_carlo_returns_know_no_value_within_an_episode():
    rewards, _, next_values, terminated, done = random_rollout(10)
    within = ~done
    within[-1] = False
    np.testing.assert_array_equal(
        monte_carlo_returns(rewards, np.where(within, np.nan, next_values), terminated, done, 0.99),
        monte_carlo_returns(rewards, next_values, terminated, done, 0.99),
    )


def test_cut_keeps_the_values_at_the_ends_of_data_only():
    done = np.array([[False, True], [True, False], [False, False]])
    next_values = np.arange(1.0, 7.0).reshape(3, 2)
    np.testing.assert_array_equal(cut(next_values, done), [[0, 2], [3, 0], [5, 6]])


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (100.0, 3.0), (-5.0, 1e-3)])
def test_standardize_gives_mean_zero_and_deviation_one(offset, scale):
    x = (offset + scale * np.random.default_rng(0).standard_normal((64, 16))).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean()) / (exact.std() + 1e-8)
    np.testing.assert_allclose(standardize(x), expected, atol=3e-6 * max(1.0, abs(offset) / scale))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.3, -100.1])
def test_standardize_of_a_constant_is_zero(constant):
    """Rounding errors of the mean are not blown up to deviations of size 1."""
    np.testing.assert_allclose(standardize(jnp.full((60, 5), constant)), 0.0, atol=1e-3)


def test_explained_variance_is_one_minus_the_ratio_of_variances():
    rng = np.random.default_rng(1)
    targets = rng.standard_normal((50, 40)).astype(np.float32)
    values = (0.8 * targets + 0.5 * rng.standard_normal((50, 40)) + 2.0).astype(np.float32)
    exact, fit = targets.astype(np.float64), values.astype(np.float64)
    expected = 1 - np.var(exact - fit) / np.var(exact)
    assert float(explained_variance(values, targets)) == pytest.approx(expected, abs=1e-5)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant():
    targets = np.random.default_rng(2).standard_normal(100).astype(np.float32)
    assert float(explained_variance(targets, targets)) == 1.0
    assert float(explained_variance(np.full_like(targets, 3.0), targets)) == pytest.approx(0.0, abs=1e-5)
    assert float(explained_variance(-targets, targets)) == pytest.approx(-3.0, abs=1e-5)


def test_explained_variance_has_no_scale_and_none_where_targets_do_not_vary():
    values, targets = np.asarray([1.0, 2.0, 4.0], np.float32), np.asarray([2.0, 1.0, 5.0], np.float32)
    expected = explained_variance(values, targets)
    for scale in (1e-5, 1e5):
        np.testing.assert_allclose(explained_variance(scale * values, scale * targets), expected, rtol=1e-4)
    assert float(explained_variance(np.full_like(targets, 3.0), 1e-5 * targets)) == pytest.approx(0.0, abs=1e-2)
    assert np.isnan(explained_variance(values, np.full_like(values, 2.0)))
