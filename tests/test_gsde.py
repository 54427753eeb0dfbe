"""Generalised state-dependent exploration: against NumPy, and held over steps."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk
from support import by_cost

from purejaxppo import NPG, PPO, TRPO, Config, evaluate, init, preset, update_step
from purejaxppo.agent import Agent
from purejaxppo.distributions import DiagonalGaussian
from purejaxppo.errors import UsageError
from purejaxppo.networks.gsde import StateDependentNoise
from purejaxppo.policy.frames import player
from purejaxppo.rollout import rollout
from purejaxppo.spaces import Box

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 64, "hidden_sizes": (8,), "num_minibatches": 1}
KEY = jax.random.key(0)


def distribution(samples=3, hold=0):
    rng = np.random.default_rng(0)
    mean, features, weights = (
        rng.normal(size=(samples, 2)),
        rng.normal(size=(samples, 5)),
        rng.normal(size=(5, 2)) * 0.3,
    )
    made = StateDependentNoise.of(*(jnp.asarray(x, jnp.float32) for x in (mean, features, weights)), hold)
    return made, mean, features, np.exp(weights)


def test_variance_and_log_prob():
    """Var = Σ φ² σ²; the density of a single step is that Gaussian's."""
    made, mean, features, std = distribution()
    variance = np.einsum("nl,lk->nk", features**2, std**2) + 1e-6
    np.testing.assert_allclose(np.exp(2 * made.log_std), variance, rtol=1e-5)
    action = mean + 0.7
    expected = (-0.5 * 0.7**2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum(axis=1)
    np.testing.assert_allclose(made.log_prob(jnp.asarray(action, jnp.float32)), expected, rtol=1e-4)
    drawn = jax.vmap(made.sample)(jax.random.split(KEY, 20_000))
    np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(variance), rtol=0.03)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.06)


def test_noise_is_linear_in_the_features_and_held():
    """With the same Z, twice the features are twice the noise; keys are those of the first step of each stretch."""
    made, *_ = distribution()
    once = made.sample_with(KEY) - made.mean
    np.testing.assert_allclose(
        made.replace(features=2 * made.features).sample_with(KEY) - made.mean, 2 * once, rtol=1e-4
    )
    keys = jax.random.split(KEY, 7)
    for hold, expected in ((0, [0] * 7), (1, range(7)), (3, [0, 0, 0, 3, 3, 3, 6])):
        np.testing.assert_array_equal(
            jax.random.key_data(made.replace(hold=hold).held(keys)), jax.random.key_data(keys[np.array([*expected])])
        )


@pytest.mark.thorough
def test_a_rollout_explores_without_jitter():
    """Along a rollout, (action - μ) / σ of neighbouring steps correlate; with Gaussian noise they do not."""
    jumps = {}
    for kind in ("gsde", "gaussian"):
        config = Config(
            env="Pendulum-v1", algo=PPO(), action_distribution=kind, **SMALL | {"num_steps": 64, "num_envs": 8}
        )
        state, agent = init(config, KEY), Agent.of(config)
        _, transitions, _ = jax.jit(
            lambda state, agent=agent: rollout(KEY, agent.env, agent.make_policy(state), state.rollout, 64)
        )(state)
        assert type(transitions.distribution) is DiagonalGaussian  # features are not kept
        z = (transitions.action - transitions.distribution.mean) * jnp.exp(-transitions.distribution.log_std)
        jumps[kind] = float(jnp.mean((z[1:] - z[:-1]) ** 2) / jnp.mean(z**2))
    assert jumps["gsde"] < 0.5
    assert jumps["gaussian"] == pytest.approx(2.0, abs=0.3)


class Moves(NamedTuple):
    """The last action, and how many there were."""

    action: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Still:
    """Whatever one does, one sees the same. The reward is 1 for another action than before, after the first of six."""

    observation_space, action_space = Box(-1.0, 1.0, (2,)), Box(-9.0, 9.0, (1,))

    def reset(self, key):
        return Moves(jnp.zeros(1), jnp.zeros((), jnp.int32)), jnp.full(2, 0.5)

    def step(self, key, state, action):
        moved, never = (state.count > 0) & (action[0] != state.action[0]), jnp.zeros((), bool)
        count = state.count + 1
        return Moves(action, count), jnp.full(2, 0.5), moved.astype(jnp.float32), never, count >= 6


@pytest.mark.parametrize(("hold", "changes"), by_cost([(0, 0), (2, 2), (1, 5)], [(2, 2)]))
def test_a_sampled_policy_holds_its_noise_where_it_is_measured_and_filmed(hold, changes):
    more = {"action_distribution": "gsde", "noise_steps": hold, "eval_greedy": False}
    config = Config(env=Still(), algo=PPO(), **SMALL, **more)
    state = init(config, KEY)
    assert evaluate(config, state, KEY, 3).returns.tolist() == [changes] * 3
    assert player(config, 6)(state, KEY).totals[-1] == changes


@pytest.mark.parametrize(
    ("algo", "shared"),
    by_cost([(PPO(), False), (TRPO(), False), (PPO(), True), (NPG(), False)], [(TRPO(), False)], [(PPO(), False)]),
)
def test_updates(algo, shared):
    """All that a policy of gSDE is asked for: ratios, KL, Fisher products; log σ is learnt."""
    config = Config(env=Walk(continuous=True), algo=algo, action_distribution="gsde", shared_torso=shared, **SMALL)
    state = init(config.replace(log_std_init=-1.0), KEY)
    after, metrics = jax.jit(lambda state: update_step(config, state))(state)
    assert np.isfinite([float(metrics[name]) for name in ("kl", "entropy", "policy_loss")]).all()
    assert state.policy["params"]["log_std"].shape == (8, 1)
    assert np.all(state.policy["params"]["log_std"] == -1.0)
    assert np.any(after.policy["params"]["log_std"] != -1.0)
    if isinstance(algo, TRPO):
        assert int(metrics["accepted"]) == 1
        assert float(metrics["predicted_kl"]) == pytest.approx(float(metrics["kl"]), rel=0.2)


def test_refused():
    with pytest.raises(UsageError, match="noise_steps needs gsde"):
        preset("ppo", "Pendulum-v1", noise_steps=4).check()
    with pytest.raises(UsageError, match="is for Box actions"):
        preset("ppo", "CartPole-v1", action_distribution="gsde").check()
