"""Running statistics against NumPy's mean and variance of everything seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import quick_jit

from purejaxppo.normalize import RewardNormalizer, RunningStatistics

update = quick_jit(RunningStatistics.update)


def merged(*batches, shape=(3,)):
    statistics = RunningStatistics.init(shape)
    for batch in batches:
        statistics = update(statistics, jnp.asarray(batch, jnp.float32))
    return statistics


def assert_moments(statistics, samples, rtol=1e-5, offset=1.0):
    samples = np.asarray(samples, np.float64)
    assert np.all(np.asarray(statistics.count) == len(samples))
    np.testing.assert_allclose(statistics.mean, samples.mean(0), atol=rtol * offset)
    np.testing.assert_allclose(statistics.variance, samples.var(0), rtol=rtol)


@pytest.mark.parametrize("seed", range(3))
def test_any_split_into_batches_gives_mean_and_variance_of_all_samples(seed):
    rng = np.random.default_rng(seed)
    samples = (rng.standard_normal((240, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, -0.2]).astype(np.float32)
    cuts = np.sort(rng.choice(np.arange(1, 240), 4, replace=False))
    assert_moments(merged(*np.split(samples, cuts)), samples)


def test_single_samples_and_one_batch_agree():
    samples = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    one_by_one, _ = jax.lax.scan(lambda s, x: (s.update(x), None), RunningStatistics.init((3,)), samples)
    assert_moments(one_by_one, samples)
    assert_moments(merged(samples), samples)


@pytest.mark.parametrize("shape", [(), (4,), (5, 5, 2)])
def test_batches_may_have_any_leading_axes_and_samples_any_shape(shape):
    samples = np.random.default_rng(1).standard_normal((6, 7, *shape)).astype(np.float32)
    statistics = merged(samples, shape=shape)
    assert statistics.mean.shape == statistics.variance.shape == shape
    assert_moments(statistics, samples.reshape(42, *shape))
    assert statistics.normalize(samples).shape == samples.shape
    np.testing.assert_array_equal(statistics.normalize(samples)[2, 3], statistics.normalize(samples[2, 3]))


def test_large_offsets_do_not_cancel_the_variance():
    """Mean 10⁴ and deviation 1, where the naive E[x²] - E[x]² has no correct digit."""
    samples = (1e4 + np.random.default_rng(2).standard_normal((1000, 3))).astype(np.float32)
    assert_moments(merged(*np.split(samples, [10, 400, 990])), samples, rtol=1e-3, offset=1e3)


def test_many_updates_accumulate_no_error():
    rng = np.random.default_rng(3)
    samples = (100.0 + rng.standard_normal((2000, 16, 3))).astype(np.float32)
    statistics, _ = jax.lax.scan(lambda s, x: (s.update(x), None), RunningStatistics.init((3,)), samples)
    assert_moments(statistics, samples.reshape(-1, 3), rtol=1e-3)


def test_before_any_sample_normalize_is_the_identity():
    x = jnp.asarray([0.5, -2.0, 3.0])
    np.testing.assert_allclose(RunningStatistics.init((3,)).normalize(x), x, rtol=1e-6)


def test_normalized_samples_have_mean_zero_and_variance_one():
    samples = (5.0 + 3.0 * np.random.default_rng(4).standard_normal((500, 3))).astype(np.float32)
    normalized = np.asarray(merged(samples).normalize(samples), np.float64)
    np.testing.assert_allclose(normalized.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalized.var(0), 1.0, rtol=1e-4)


def test_normalize_clips_to_ten_deviations():
    statistics = merged([[0.0, 0.0, 7.0], [2.0, 4.0, 7.0]])
    x = jnp.asarray([[10.9, -100.0, 8.0], [11.1, np.inf, 7.0], [1.0, -np.inf, 6.0]])
    np.testing.assert_allclose(statistics.normalize(x), [[9.9, -10, 10], [10, 10, 0], [0, -10, -10]], rtol=1e-4)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_samples_that_are_not_finite_leave_their_entry_alone_and_the_others_go_on(poison):
    """3e38 is finite, but its square is not."""
    rng = np.random.default_rng(5)
    first, second, third = rng.standard_normal((3, 20, 3)).astype(np.float32)
    poisoned = second.copy()
    poisoned[7, 1] = poison
    before, after = merged(first), merged(first, poisoned)
    np.testing.assert_array_equal(after.mean[1], before.mean[1])
    np.testing.assert_array_equal(after.variance[1], before.variance[1])
    both = np.concatenate([first, second]).astype(np.float64)
    np.testing.assert_allclose(after.mean[::2], both.mean(0)[::2], atol=1e-6)
    np.testing.assert_allclose(after.variance[::2], both.var(0)[::2], rtol=1e-5)
    for x in jax.tree.leaves(merged(poisoned, third)):
        assert np.all(np.isfinite(x))


def test_constant_samples_have_variance_zero_and_normalize_to_zero():
    statistics = merged(np.full((50, 3), 0.3), np.full((10, 3), 0.3))
    np.testing.assert_allclose(statistics.variance, 0.0, atol=1e-12)
    np.testing.assert_allclose(statistics.normalize(jnp.full(3, 0.3)), 0.0, atol=1e-3)


# Rewards


def discounted_returns(rewards, done, gamma, start):
    """R_t = r_t + γ R_{t-1}, begun anew after each end: all of them, and the one carried on."""
    carry, returns = np.array(start, np.float64), []
    for reward, ended in zip(rewards, done, strict=True):
        carry = reward + gamma * carry
        returns.append(carry)
        carry = np.where(ended, 0.0, carry)
    return np.stack(returns), carry


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    """Three rollouts in a row, episodes running on from one to the next."""
    rng = np.random.default_rng(6)
    normalizer, carry, seen = RewardNormalizer.init(5), np.zeros(5), []
    for _ in range(3):
        rewards, done = (3.0 + rng.standard_normal((16, 5))).astype(np.float32), rng.random((16, 5)) < 0.1
        normalizer = normalizer.update(jnp.asarray(rewards), jnp.asarray(done), 0.9)
        returns, carry = discounted_returns(rewards, done, 0.9, carry)
        seen.append(returns.ravel())
        everything = np.concatenate(seen)
        np.testing.assert_allclose(normalizer.discounted_return, carry, rtol=1e-5)
        np.testing.assert_allclose(normalizer.statistics.mean, everything.mean(), rtol=1e-5)
        np.testing.assert_allclose(normalizer.statistics.variance, everything.var(), rtol=1e-4)
        expected = np.clip(rewards / np.sqrt(everything.var() + 1e-8), -10, 10)
        np.testing.assert_allclose(normalizer.normalize(jnp.asarray(rewards)), expected, rtol=1e-4)


def test_rewards_keep_their_sign_and_are_clipped():
    """Divided, not centred."""
    normalizer = RewardNormalizer.init(2)
    normalizer = normalizer.update(jnp.asarray([[1.0, 3.0]]), jnp.zeros((1, 2), bool), 0.99)
    np.testing.assert_allclose(normalizer.normalize(jnp.asarray([2.0, 0.0, -3.0, 50.0, -np.inf])), [2, 0, -3, 10, -10])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_leaves_the_statistics_and_the_next_rollout_sound(poison):
    rng = np.random.default_rng(7)
    done = jnp.zeros((8, 3), bool)
    first, second, third = (jnp.asarray(rng.standard_normal((8, 3)), jnp.float32) for _ in range(3))
    sound = RewardNormalizer.init(3).update(first, done, 0.9)
    hit = sound.update(second.at[2, 1].set(poison), done, 0.9)
    np.testing.assert_array_equal(hit.statistics.variance, sound.statistics.variance)
    assert float(hit.discounted_return[1]) == 0.0
    after = hit.update(third, done, 0.9)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))
    assert float(after.statistics.variance) != float(hit.statistics.variance)
