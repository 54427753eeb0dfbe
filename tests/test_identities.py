"""Equations that hold between parts of the whole: one rollout, seen through the options that read it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk
from support import assert_same_bits, largest_difference, quick_jit

from purejaxppo import A2C, PPO, Config, init, make_train, update_step
from purejaxppo.agent import Agent
from purejaxppo.optimize.surrogate import likelihood_ratio
from purejaxppo.rollout import rollout
from purejaxppo.train import learning_batch, learning_rate

KEY = jax.random.key(0)
SMALL = {"hidden_sizes": (8,), "num_envs": 3, "num_steps": 20}
DISCRETE, CONTINUOUS = pytest.param(Walk(), id="discrete"), pytest.param(Walk(continuous=True), id="continuous")
SLOWLY_DISCRETE, SLOWLY_CONTINUOUS = (
    pytest.param(*x.values, id=x.id, marks=pytest.mark.slow) for x in (DISCRETE, CONTINUOUS)
)

fresh, update = quick_jit(init), quick_jit(update_step)


@quick_jit
def collect(config, state):
    """The rollout that `update_step` would make of this state."""
    _, rollout_key, *_ = jax.random.split(state.key, 3)
    return rollout(
        rollout_key, config.environment, Agent.of(config).make_policy(state), state.rollout, config.num_steps
    )[1]


@functools.cache
def recorded():
    """One rollout, with values that are not yet near their targets: (config, state, transitions)."""
    config = Config(env=Walk(), algo=A2C(), gamma=0.9, gae_lambda=0.7, **SMALL)
    state = fresh(config, KEY)
    transitions = collect(config, state)
    assert np.any(transitions.terminated)
    assert np.any(transitions.truncated)
    return config, state, transitions


def batch_of(**options):
    """The learning batch of the recorded rollout under other options; [T, B] arrays."""
    config, state, transitions = recorded()
    batch, *_ = learning_batch(Agent.of(config.replace(**options)), state, transitions)
    return {name: np.asarray(getattr(batch, name)).reshape(20, 3) for name in ("value", "advantage", "value_target")}


def by_hand(gae_lambda, gamma=0.9):
    """λ-returns of the recorded rollout, episode by episode in double precision."""
    config, state, transitions = recorded()
    critic = Agent.of(config).critic
    next_values = np.asarray(critic.apply(state.critic, transitions.next_obs), np.float64)
    targets = np.zeros((20, 3))
    for b in range(3):
        following = 0.0
        for t in reversed(range(20)):
            last = t == 19 or transitions.terminated[t, b] or transitions.truncated[t, b]
            bootstrap = 0.0 if transitions.terminated[t, b] else next_values[t, b]
            blend = bootstrap if last else (1 - gae_lambda) * bootstrap + gae_lambda * following
            following = targets[t, b] = float(transitions.reward[t, b]) + gamma * blend
    return targets


@pytest.mark.parametrize("env", [DISCRETE, SLOWLY_CONTINUOUS])
def test_ratio_is_1_in_the_first_minibatch(env):
    """After updates with running normalisation, too, the policy judges its own actions as it did when it acted."""
    config = Config(env=env, algo=PPO(), normalize_observations=True, num_minibatches=2, num_epochs=2, **SMALL)
    state = fresh(config, KEY)
    for _ in range(3):
        state, _ = update(config, state)
    batch, *_ = learning_batch(Agent.of(config), state, collect(config, state))
    policy = Agent.of(config).policy
    ratio = likelihood_ratio(policy.apply(state.policy, batch.obs).log_prob(batch.action), batch.log_prob)
    np.testing.assert_allclose(ratio, np.ones(60), rtol=0, atol=1e-6)
    assert np.std(batch.log_prob) > 1e-3


@pytest.mark.parametrize("env", [SLOWLY_DISCRETE, CONTINUOUS])
def test_unclipped_ppo_of_one_step_is_a2c(env):
    """At ratio 1, ∇ ratio · A = ∇ log π · A: same gradient, so the same new policy and the same moments."""
    shared = {"learning_rate": 1e-2, "gae_lambda": 0.9, "num_epochs": 1, "num_minibatches": 1}
    a2c = Config(env=env, algo=A2C(entropy_coef=0.02), **shared, **SMALL)
    unclipped = PPO(clip_eps=math.inf, normalize_advantages="none", entropy_coef=0.02)
    ppo = Config(env=env, algo=unclipped, anneal_learning_rate=False, value_clip_eps=math.inf, **shared, **SMALL)
    state = fresh(a2c, KEY)
    expected, expected_metrics = update(a2c, state)
    actual, actual_metrics = update(ppo, state)
    assert largest_difference(expected.policy, state.policy) > 1e-3
    assert largest_difference(actual.policy, expected.policy) <= 1e-6
    np.testing.assert_allclose(actual_metrics["grad_norm"], expected_metrics["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(actual_metrics["kl"], expected_metrics["kl"], rtol=1e-3)
    gradient, expected_gradient = (10 * x.algorithm.mu["params"]["Dense_0"]["kernel"] for x in (actual, expected))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)  # the first moment is 0.1 ∇
    assert largest_difference(actual.critic, expected.critic) <= 1e-6


def test_lambda_1_is_monte_carlo():
    """GAE with λ = 1 is the return minus V, whichever way it is asked for."""
    gae = batch_of(advantage_estimator="gae", gae_lambda=1.0)
    monte_carlo = batch_of(advantage_estimator="monte-carlo", value_target="monte-carlo", gae_lambda=0.3)
    np.testing.assert_allclose(gae["advantage"], monte_carlo["advantage"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gae["value_target"], monte_carlo["value_target"], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(gae["advantage"] - batch_of(advantage_estimator="gae", gae_lambda=0.3)["advantage"])) > 0.1


@pytest.mark.parametrize(("value_target", "equivalent"), [("td0", 0.0), ("lambda-return", 0.7), ("monte-carlo", 1.0)])
def test_value_targets_equal_their_formulas(value_target, equivalent):
    """r + γ((1-λ) V(s') + λ G'), G' cut at episode ends and bootstrapped unless terminated; λ = 0, λ, 1."""
    batch = batch_of(value_target=value_target)
    np.testing.assert_allclose(batch["value_target"], by_hand(equivalent), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch["advantage"], by_hand(0.7) - batch["value"], rtol=1e-5, atol=1e-5)


def test_advantage_and_target_are_chosen_apart():
    """Each estimator goes with each target, and neither changes the other."""
    for value_target, target in (("td0", 0.0), ("lambda-return", 0.7), ("monte-carlo", 1.0)):
        batch = batch_of(advantage_estimator="monte-carlo", value_target=value_target)
        np.testing.assert_allclose(batch["advantage"], by_hand(1.0) - batch["value"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batch["value_target"], by_hand(target), rtol=1e-5, atol=1e-5)


def test_entropy_reward_is_minus_log_probability():
    """With `entropy_reward_coef` α the rewards are r - α log π(a|s), the environment's own left as they are."""
    _, _, transitions = recorded()
    plain, entropic = batch_of(value_target="td0"), batch_of(value_target="td0", entropy_reward_coef=0.5)
    log_prob = transitions.distribution.log_prob(transitions.action)
    np.testing.assert_allclose(entropic["value_target"] - plain["value_target"], -0.5 * log_prob, atol=1e-5)
    difference = batch_of(value_target="monte-carlo", entropy_reward_coef=0.5)["value_target"] - by_hand(1.0)
    assert np.min(difference) >= -0.5 * np.max(log_prob) - 1e-5  # every return gains, at the end least
    assert np.max(difference) > 0.6


def test_learning_rate_schedule_is_exact():
    """Annealed: α (1 - u/U), the first α and the last α/U, to the bit. Otherwise α throughout."""
    config = Config(env=Walk(), algo=A2C(), total_steps=8 * 60, learning_rate=3e-4, num_epochs=1, **SMALL)
    alpha, annealed = np.float32(3e-4), config.replace(anneal_learning_rate=True)
    assert (learning_rate(annealed, jnp.asarray(0)), learning_rate(annealed, jnp.asarray(7))) == (alpha, alpha / 8)
    assert (learning_rate(config, jnp.asarray(0)), learning_rate(config, jnp.asarray(7))) == (alpha, alpha)
    _, metrics = quick_jit(make_train(annealed))(KEY)
    np.testing.assert_array_equal(metrics["learning_rate"], alpha * (1 - np.arange(8, dtype=np.float32) / 8))


@pytest.mark.thorough
def test_normalisers_stand_still_during_an_update():
    """Update 2 sees observations through the statistics of rollout 1 alone: acting, learning and bootstrapping."""
    options = {"normalize_observations": True, "normalize_rewards": True, "value_target": "td0", "gamma": 0.9}
    config = Config(env=Walk(), algo=A2C(), **options, **SMALL)
    before = fresh(config, KEY)
    first = collect(config, before)
    batch, *_ = learning_batch(Agent.of(config), before, first)
    np.testing.assert_allclose(batch.obs, np.clip(first.obs.reshape(60, 2), -10, 10), rtol=1e-6)  # no statistics yet

    state, _ = update(config, before)
    obs = np.asarray(first.obs, np.float64).reshape(60, 2)
    statistics = state.observation_statistics
    assert np.all(statistics.count == 60)
    np.testing.assert_allclose(statistics.mean, obs.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.variance, obs.var(0), rtol=1e-5)

    second = collect(config, state)
    batch, rewards, _ = learning_batch(Agent.of(config), state, second)
    normalized, normalized_next = (
        np.clip((np.asarray(x, np.float64).reshape(60, 2) - obs.mean(0)) / obs.std(0), -10, 10)
        for x in (second.obs, second.next_obs)
    )
    np.testing.assert_allclose(batch.obs, normalized, rtol=1e-4, atol=1e-5)
    *_, policy, critic = Agent.of(config)
    logits = policy.apply(state.policy, jnp.asarray(normalized, jnp.float32)).logits
    np.testing.assert_allclose(second.distribution.logits.reshape(60, 2), logits, rtol=1e-4, atol=1e-5)
    bootstrap = critic.apply(state.critic, jnp.asarray(normalized_next, jnp.float32)) * ~second.terminated.reshape(60)
    scaled = np.asarray(second.reward, np.float64).reshape(60) / np.sqrt(float(rewards.statistics.variance))
    np.testing.assert_allclose(batch.value_target, scaled + 0.9 * bootstrap, rtol=1e-4, atol=1e-4)

    after, _ = update(config, state)
    assert np.all(after.observation_statistics.count == 120)
    assert_same_bits(after.reward_normalizer.statistics.count, jnp.asarray(120.0))
