"""The surrogates of PPO, the adaptive penalty and minibatch Adam against scalar loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import quick_jit

from purejaxppo.algorithms import PPO, PPOPenalty
from purejaxppo.distributions import Categorical
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.surrogate import likelihood_ratio
from purejaxppo.types import Batch

INF = math.inf


# The likelihood ratio


def test_likelihood_ratio_is_the_exponential_of_the_difference():
    new, old = np.random.default_rng(0).normal(scale=3.0, size=(2, 1000)).astype(np.float32)
    expected = np.exp(new.astype(np.float64) - old)
    np.testing.assert_allclose(likelihood_ratio(new, old), expected, rtol=1e-5)
    assert np.all(likelihood_ratio(new, new) == 1.0)


@pytest.mark.parametrize("log_ratio", [0.0, 19.0, 21.0, 89.0, 1e4, 3e38, INF])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_likelihood_ratio_and_its_gradient_are_finite_for_any_log_ratio(log_ratio, sign):
    value, slope = jax.value_and_grad(likelihood_ratio)(jnp.float32(sign * log_ratio), jnp.float32(0.0))
    expected = math.exp(sign * min(log_ratio, 20.0))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(slope) == pytest.approx(expected if log_ratio < 20 else 0.0, rel=1e-5)


# PPO-clip


def clipped_surrogate(r, A, clip_eps, dual_clip):
    """Eq. 7 of PPO, and eq. 6 of dual clip, for one sample."""
    value = min(r * A, min(max(r, 1 - clip_eps), 1 + clip_eps) * A)
    return max(value, dual_clip * A) if A < 0 and dual_clip < INF else value


def surrogate_slope(r, A, clip_eps, dual_clip):
    """∂/∂r of it: A, or 0 where a clip is active."""
    if (A > 0 and r > 1 + clip_eps) or (A < 0 and (r < 1 - clip_eps or r > dual_clip)):
        return 0.0
    return A


def samples():
    """Ratios inside, outside and far outside the clip, each with advantages of every sign and size."""
    ratios = np.array([0.0, 1e-6, 0.3, 0.79, 0.81, 1.0, 1.1, 1.19, 1.21, 2.0, 2.9, 3.1, 50.0, 4.8e8])
    advantages = np.array([-1e4, -2.0, -0.5, -1e-6, 0.0, 1e-6, 0.5, 2.0, 1e4])
    return (x.ravel().astype(np.float32) for x in np.meshgrid(ratios, advantages))


@pytest.mark.parametrize("clip_eps", [0.2, 0.05, INF])
@pytest.mark.parametrize("dual_clip", [3.0, 1.5, INF])
def test_clipped_surrogate_and_its_gradient_are_those_of_the_scalar_rule(clip_eps, dual_clip):
    ppo = PPO(clip_eps=clip_eps, dual_clip=dual_clip)
    ratios, advantages = samples()
    values = ppo.clipped_surrogate(jnp.asarray(ratios), jnp.asarray(advantages))
    slopes = jax.grad(lambda r: ppo.clipped_surrogate(r, jnp.asarray(advantages)).sum())(jnp.asarray(ratios))
    pairs = list(zip(ratios.astype(float), advantages.astype(float), strict=True))
    np.testing.assert_allclose(values, [clipped_surrogate(*pair, clip_eps, dual_clip) for pair in pairs], rtol=1e-5)
    np.testing.assert_allclose(slopes, [surrogate_slope(*pair, clip_eps, dual_clip) for pair in pairs], rtol=1e-5)


def test_clip_hyperparameters_may_be_traced():
    """Finite and infinite ones in one compiled program, and nothing becomes NaN."""
    ratios, advantages = samples()

    def surrogate(clip_eps, dual_clip):
        return PPO(clip_eps=clip_eps, dual_clip=dual_clip).clipped_surrogate(
            jnp.asarray(ratios), jnp.asarray(advantages)
        )

    settings = np.array([[0.2, INF], [INF, 3.0], [INF, INF], [0.1, 2.0]], np.float32)
    together = quick_jit(jax.vmap(surrogate))(*settings.T)
    expected = [
        [clipped_surrogate(float(r), float(A), *map(float, setting)) for r, A in zip(ratios, advantages, strict=True)]
        for setting in settings
    ]
    np.testing.assert_allclose(together, expected, rtol=1e-5)


def test_no_branch_of_the_clipped_surrogate_makes_a_nan():
    """Not even one that is not taken, as inf · 0 would be."""
    ratios, advantages = (jnp.asarray(x) for x in samples())
    with jax.debug_nans(True):
        values = PPO().clipped_surrogate(ratios, advantages)
    assert np.all(np.isfinite(values))


def test_clipped_surrogate_never_exceeds_the_unclipped_but_by_dual_clip():
    ratios, advantages = (jnp.asarray(x) for x in samples())
    free = PPO(clip_eps=INF).clipped_surrogate(ratios, advantages)
    np.testing.assert_allclose(free, ratios * advantages, rtol=1e-6)
    clipped = PPO(clip_eps=0.2).clipped_surrogate(ratios, advantages)
    dual = PPO(clip_eps=0.2, dual_clip=3.0).clipped_surrogate(ratios, advantages)
    assert np.all(clipped <= free)
    assert np.all(dual >= clipped)
    assert np.all(dual >= jnp.minimum(3.0 * advantages, 0.0))


@pytest.mark.parametrize("make", [PPO, pytest.param(PPOPenalty, marks=pytest.mark.slow)])
def test_advantages_are_standardised_over_each_minibatch_where_asked(make):
    """As if they had come so; and in minibatches otherwise than over the batch."""
    rng = np.random.default_rng(0)
    raw = rng.normal(3.0, 5.0, 32)
    table = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    obs, action = jnp.asarray(rng.integers(4, size=32)), jnp.asarray(rng.integers(3, size=32))
    policy = lambda params, obs: Categorical(params[obs])  # noqa: E731
    old = policy(table, obs)

    def updated(choice, advantage, num_minibatches=1):
        batch = Batch(obs, action, old.log_prob(action), old, None, jnp.asarray(advantage, jnp.float32), None)
        optimizer, algorithm = MinibatchAdam(0.1, INF, 3, num_minibatches), make(normalize_advantages=choice)
        return algorithm.update(jax.random.key(0), policy, table, algorithm.init(table), batch, optimizer)[0]

    expected = updated("none", (raw - raw.mean()) / raw.std())
    np.testing.assert_allclose(updated("minibatch", raw), expected, atol=1e-5)
    np.testing.assert_allclose(updated("batch", raw), expected, atol=1e-5)
    assert jnp.max(jnp.abs(updated("none", raw) - expected)) > 1e-3
    assert jnp.max(jnp.abs(updated("minibatch", raw, 4) - updated("batch", raw, 4))) > 1e-3


def test_minibatches_are_prepared_each_for_itself():
    """What the loss sees of 4 minibatches of an epoch has each the mean 0 that `prepare` gives it."""
    optimizer = MinibatchAdam(0.1, INF, num_epochs=3, num_minibatches=4)

    def loss(params, minibatch):
        return jnp.sum(params**2), {"mean": jnp.mean(minibatch), "largest": jnp.max(jnp.abs(minibatch))}

    start = jnp.ones(2)
    data = jnp.arange(32.0) ** 2
    _, _, metrics = optimizer.minimize(
        jax.random.key(0), loss, start, MinibatchAdam.init(start), data, prepare=lambda x: x - jnp.mean(x)
    )
    assert abs(metrics["mean"]) < 1e-4
    assert metrics["largest"] > 100.0


# PPO with a penalty


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.0151, 2.0), (1e9, 2.0), (INF, 2.0)],
)
def test_the_penalty_is_halved_doubled_or_kept(kl, factor):
    algorithm = PPOPenalty(kl_target=0.01)
    assert float(algorithm.adapt(jnp.float32(3.0), jnp.float32(kl))) == 3.0 * factor


def test_the_penalty_stays_within_bounds_and_comes_back():
    algorithm = PPOPenalty(kl_target=0.01)
    coef = jnp.float32(1.0)
    for kl, bound in ((0.0, 1e-6), (1.0, 1e6)):
        for _ in range(60):
            coef = algorithm.adapt(coef, jnp.float32(kl))
        assert float(coef) == pytest.approx(bound)
    assert float(algorithm.adapt(coef, jnp.float32(0.0))) == pytest.approx(5e5)
    assert float(algorithm.adapt(jnp.float32(2.0), jnp.float32(np.nan))) == 2.0


# Adam over minibatches


def adam(gradient, x, steps, learning_rate, max_norm, stop=lambda x: False):
    """Adam (b1 = 0.9, b2 = 0.999, ε = 1e-5) on gradients clipped by their norm, in float64."""
    m, v, norms = np.zeros_like(x), np.zeros_like(x), []
    for t in range(1, steps + 1):
        if stop(x):
            break
        g = gradient(x)
        norms.append(np.linalg.norm(g))
        g = g * min(1.0, max_norm / norms[-1])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-5)
    return x, norms


CURVATURE, START = np.array([1.0, 4.0, 0.25]), np.array([1.0, -2.0, 3.0])
PARAMS = {"a": jnp.asarray(START[:2], jnp.float32), "b": jnp.asarray(START[2:], jnp.float32)}


def quadratic(params, batch):
    """½ Σ c (x - y)², y the mean of the batch; its metric is the loss."""
    x = jnp.concatenate([params["a"], params["b"]])
    value = 0.5 * jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * (x - jnp.mean(batch, axis=0)) ** 2)
    return value, {"loss": value}


def flat(params):
    return np.concatenate([params["a"], params["b"]])


@pytest.mark.parametrize("max_norm", [0.5, 3.0, INF])
def test_whole_batches_follow_adam_with_the_gradients_global_norm_clipped(max_norm):
    batch = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    target = batch.astype(np.float64).mean(0)
    expected, norms = adam(lambda x: CURVATURE * (x - target), START, 25, 0.05, max_norm)
    optimizer = MinibatchAdam(0.05, max_norm, num_epochs=25, num_minibatches=1)
    params, moments, metrics = quick_jit(optimizer.minimize, static_argnums=1)(
        jax.random.key(0), quadratic, PARAMS, MinibatchAdam.init(PARAMS), jnp.asarray(batch)
    )
    np.testing.assert_allclose(flat(params), expected, atol=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norms[-1], rel=1e-4)
    assert int(moments.count) == 25


def test_moments_carry_over_from_one_call_to_the_next():
    batch = jnp.zeros((4, 3))
    expected, _ = adam(lambda x: CURVATURE * x, START, 12, 0.05, 2.0)
    optimizer = MinibatchAdam(0.05, 2.0, num_epochs=4, num_minibatches=1)
    params, moments = PARAMS, MinibatchAdam.init(PARAMS)
    minimize = quick_jit(optimizer.minimize, static_argnums=1)
    for _ in range(3):
        params, moments, _ = minimize(jax.random.key(0), quadratic, params, moments, batch)
    np.testing.assert_allclose(flat(params), expected, atol=1e-5)


def tally(params, batch):
    """Reveals what minibatches hold: weights 2ⁱ add up to 2ⁿ - 1 if and only if each of n samples comes once."""
    value = jnp.sum(params) * jnp.mean(batch)
    return value, {"weight": jnp.sum(batch), "square": jnp.sum(batch) ** 2, "size": jnp.float32(len(batch))}


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(1, 1), (1, 4), (2, 2), (3, 12)])
def test_each_epoch_takes_every_sample_exactly_once(num_epochs, num_minibatches):
    batch = jnp.asarray(2.0 ** np.arange(12))
    optimizer = MinibatchAdam(0.01, INF, num_epochs, num_minibatches)

    def metrics(key):
        return optimizer.minimize(key, tally, jnp.ones(2), MinibatchAdam.init(jnp.ones(2)), batch)[2]

    found = quick_jit(jax.vmap(metrics))(jax.random.split(jax.random.key(1), 20))
    np.testing.assert_array_equal(np.asarray(found["weight"]) * num_minibatches, 2.0**12 - 1)
    np.testing.assert_array_equal(found["size"], 12 / num_minibatches)
    compositions = len(np.unique(found["square"]))
    assert compositions == 1 if num_minibatches in (1, 12) else compositions > 10


def test_epochs_are_shuffled_apart_and_the_rows_of_all_leaves_stay_together():
    """What the last of 1, 2 or 3 epochs saw first, told by metrics of a loss that rows of other leaves would change."""
    batch = {"x": jnp.arange(12.0), "y": -jnp.arange(12.0)[:, None]}

    def loss(params, part):
        value = jnp.sum(params) * jnp.mean(part["x"])
        mismatch = jnp.max(jnp.abs(part["x"] + part["y"][:, 0]))
        return value, {"mismatch": mismatch, "spread": jnp.mean(part["x"]) ** 2}

    spreads = []
    for num_epochs in (1, 2, 3):
        optimizer = MinibatchAdam(0.01, INF, num_epochs, 3)
        _, _, metrics = quick_jit(optimizer.minimize, static_argnums=1)(
            jax.random.key(3), loss, jnp.ones(2), MinibatchAdam.init(jnp.ones(2)), batch
        )
        assert float(metrics["mismatch"]) == 0.0
        spreads.append(float(metrics["spread"]))
    assert len(set(spreads)) == 3


def test_metrics_are_means_over_the_last_epoch():
    """With constant gradients of norm g every Adam step has length α, so the parameters tell the time."""
    optimizer = MinibatchAdam(0.1, INF, num_epochs=3, num_minibatches=4)

    def loss(params, batch):
        return 5.0 * params * jnp.mean(batch), {"position": params}

    start = jnp.zeros(())
    _, _, metrics = optimizer.minimize(jax.random.key(0), loss, start, MinibatchAdam.init(start), jnp.ones(8))
    assert float(metrics["position"]) == pytest.approx(-0.1 * np.mean([8, 9, 10, 11]), rel=1e-4)
    assert float(metrics["grad_norm"]) == pytest.approx(5.0, rel=1e-6)


def test_stop_freezes_the_parameters_from_the_triggering_minibatch_on():
    batch = jnp.zeros((4, 3))
    optimizer = MinibatchAdam(0.05, INF, num_epochs=60, num_minibatches=1)

    def value(x):
        return 0.5 * np.sum(CURVATURE * x**2)

    expected, norms = adam(lambda x: CURVATURE * x, START, 60, 0.05, INF, stop=lambda x: value(x) < 4.0)
    assert 5 < len(norms) < 55
    params, moments, metrics = optimizer.minimize(
        jax.random.key(0), quadratic, PARAMS, MinibatchAdam.init(PARAMS), batch, stop=lambda m: m["loss"] < 4.0
    )
    np.testing.assert_allclose(flat(params), expected, atol=1e-5)
    assert int(moments.count) == len(norms)
    assert float(metrics["loss"]) == pytest.approx(value(expected), rel=1e-4)


def test_stop_holds_though_later_minibatches_would_not_trigger_it():
    """One sample of eight triggers, in minibatches of one: the steps made are those before it in the first epoch."""
    batch = jnp.zeros(8).at[3].set(1.0)
    optimizer = MinibatchAdam(0.1, INF, num_epochs=2, num_minibatches=8)

    def loss(params, part):
        return params * (1.0 + 0.0 * jnp.sum(part)), {"trigger": jnp.sum(part)}

    def steps(key):
        start = jnp.zeros(())
        params, moments, _ = optimizer.minimize(
            key, loss, start, MinibatchAdam.init(start), batch, stop=lambda m: m["trigger"] > 0
        )
        return -params / 0.1, moments.count

    moved, counts = quick_jit(jax.vmap(steps))(jax.random.split(jax.random.key(0), 100))
    np.testing.assert_allclose(moved, counts, atol=1e-3)
    assert set(np.asarray(counts).tolist()) == set(range(8))


def test_a_stop_that_triggers_at_once_leaves_parameters_and_moments_bit_for_bit():
    optimizer = MinibatchAdam(0.1, 0.5, num_epochs=2, num_minibatches=2)
    moments = MinibatchAdam.init(PARAMS)
    params, new_moments, _ = optimizer.minimize(
        jax.random.key(0), quadratic, PARAMS, moments, jnp.ones((4, 3)), stop=lambda m: m["loss"] > -1.0
    )
    for old, new in zip(jax.tree.leaves((PARAMS, moments)), jax.tree.leaves((params, new_moments)), strict=True):
        np.testing.assert_array_equal(old, new)
