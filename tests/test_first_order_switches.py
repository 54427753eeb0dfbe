"""The projection of A2C with a trust region, and the settings that change a step: against solvers and rules by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import StepCounter, Walk
from scipy.optimize import minimize
from support import quick_jit

from purejaxppo import A2C, PPO, A2CTrustRegion, Config, UsageError, init, update_step
from purejaxppo.agent import Agent
from purejaxppo.distributions import Categorical, DiagonalGaussian
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.projection import project_to_half_space
from purejaxppo.rollout import rollout
from purejaxppo.train import adapt_step, learning_batch
from purejaxppo.types import Batch

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 8 * 32, "hidden_sizes": (8,), "num_minibatches": 1}


def test_the_projection_solves_the_quadratic_programme():
    """1,000 random cases, against SciPy's SLSQP in float64."""
    rng = np.random.default_rng(0)
    g, k = rng.normal(size=(2, 1000, 3)) * 10.0 ** rng.uniform(-1, 1, (2, 1000, 1))
    bound = 10.0 ** rng.uniform(-2, 1, 1000)
    as_tree = lambda x: {"a": jnp.asarray(x[:, :1], jnp.float32), "b": jnp.asarray(x[:, 1:], jnp.float32)}  # noqa: E731
    found, active = jax.vmap(project_to_half_space)(
        *(jax.tree.map(lambda x: x[:, None], as_tree(x)) for x in (g, k)), bound
    )
    z = np.concatenate([found["a"][:, 0], found["b"][:, 0]], axis=1)
    for i in range(1000):
        solved = minimize(
            lambda z, g=g[i]: 0.5 * np.sum((z - g) ** 2),
            np.zeros(3),
            jac=lambda z, g=g[i]: z - g,
            constraints={"type": "ineq", "fun": lambda z, i=i: bound[i] - k[i] @ z, "jac": lambda z, i=i: -k[i]},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        scale = np.linalg.norm(g[i])
        np.testing.assert_allclose(z[i] / scale, solved.x / scale, atol=2e-4)
    np.testing.assert_array_equal(active[:, 0], np.sum(g * k, axis=1) > bound)
    assert 0.1 < np.mean(active) < 0.9


def test_where_the_averaged_policy_is_the_policy_nothing_is_projected():
    """The KL's slope is 0 there."""
    g = {"x": jnp.asarray([[1.0, 2.0]])}
    z, active = project_to_half_space(g, {"x": jnp.zeros((1, 2))}, 1e-9)
    np.testing.assert_array_equal(z["x"], g["x"])
    assert not active[0]


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_one_step_against_float64(kind):
    """A policy that is linear in its observation: the whole gradient of a2c-tr by hand, in NumPy."""
    rng = np.random.default_rng(1)
    n, width, out = 64, 3, 4 if kind == "categorical" else 2
    obs, W, W_average = rng.normal(size=(n, width)), *rng.normal(size=(2, width, out))
    advantage, bound = rng.normal(size=n), 0.3
    if kind == "categorical":
        make = Categorical
        action = rng.integers(0, out, n)
        p, q = (softmax(obs @ w) for w in (W, W_average))
        gradient = advantage[:, None] * (np.eye(out)[action] - p)
        normal = p - q
    else:
        make = lambda x: DiagonalGaussian(x, jnp.zeros_like(x))  # noqa: E731
        action = obs @ W + rng.normal(size=(n, out))
        gradient = advantage[:, None] * (action - obs @ W)
        normal = obs @ W - obs @ W_average
        # log σ is no parameter of this policy, but one of its distribution: d log p / d log σ = (a - μ)² - 1
        gradient = np.hstack([gradient, advantage[:, None] * ((action - obs @ W) ** 2 - 1)])
        normal = np.hstack([normal, 1 - (1 + (obs @ W - obs @ W_average) ** 2)])
    excess = np.sum(gradient * normal, axis=1) - bound
    z = gradient - (np.maximum(excess, 0) / np.sum(normal**2, axis=1))[:, None] * normal
    expected = obs.T @ z[:, :out] / n

    policy = lambda w, obs: make(obs @ w)  # noqa: E731
    w, averaged, x = (jnp.asarray(v, jnp.float32) for v in (W, W_average, obs))
    old = policy(w, x)
    action = jnp.asarray(action)
    zeros = jnp.zeros(n)
    batch = Batch(x, action, old.log_prob(action), old, zeros, jnp.asarray(advantage, jnp.float32), zeros)
    rule = A2CTrustRegion(entropy_coef=0.0, kl_slope=bound, average_decay=0.9)
    state = rule.init(w).replace(average=averaged)
    moved, state, metrics = rule.update(jax.random.key(0), policy, w, state, batch, MinibatchAdam(1e-3, jnp.inf, 1, 1))
    np.testing.assert_allclose(state.moments.mu / 0.1, -expected, atol=2e-6 * np.abs(expected).max() * 10)
    np.testing.assert_allclose(state.average, 0.9 * W_average + 0.1 * np.asarray(moved), rtol=1e-5, atol=1e-6)
    assert float(metrics["projected"]) == np.mean(excess > 0)
    assert 0.1 < np.mean(excess > 0) < 0.9


@pytest.mark.thorough
def test_without_a_bound_it_is_a2c():
    def steps(algo):
        config = Config(env=Walk(), algo=algo, **SMALL)
        state = init(config, jax.random.key(0))
        for _ in range(2):
            state, metrics = quick_jit(lambda state: update_step(config, state))(state)
        return state.policy, metrics["policy_loss"]

    for ours, theirs in zip(*(jax.tree.leaves(steps(x)) for x in (A2CTrustRegion(kl_slope=1e9), A2C())), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_the_step_follows_the_kl_target():
    """The rule, at its thresholds and bounds."""
    rule = lambda factor, kl, target=0.01: float(adapt_step(jnp.asarray(factor), jnp.asarray(kl), target))  # noqa: E731
    assert rule(1.0, 0.0201) == pytest.approx(1 / 1.5)
    assert rule(1.0, 0.0049) == pytest.approx(1.5)
    assert rule(1.0, 0.0199) == rule(1.0, 0.0051) == 1.0
    assert rule(0.01, 1.0) == pytest.approx(0.01)
    assert rule(100.0, 0.0) == 100.0
    assert rule(1.0, np.inf) == pytest.approx(1 / 1.5)
    assert rule(1.0, 0.0, np.inf) == 1.0  # traced: no target


def test_the_adapted_step_is_logged_and_kept():
    """Each update's learning rate is the one before times what its KL says; the state holds the next."""
    config = Config(env=Walk(), algo=PPO(), desired_kl=1e-3, anneal_learning_rate=False, learning_rate=0.01, **SMALL)
    update = quick_jit(lambda state: update_step(config, state))
    state, factor, factors = init(config, jax.random.key(0)), 1.0, set()
    for _ in range(6):
        state, metrics = update(state)
        assert float(metrics["learning_rate"]) == pytest.approx(0.01 * factor, rel=1e-5)
        factor = float(adapt_step(jnp.asarray(factor), metrics["kl"], 1e-3))
        assert float(state.step_factor) == pytest.approx(factor, rel=1e-5)
        factors.add(round(factor, 5))
    assert len(factors) > 1


def test_a_step_that_follows_the_kl_needs_one():
    class Silent(A2C):
        def update(self, *given):
            *moved, metrics = super().update(*given)
            return *moved, {name: x for name, x in metrics.items() if name != "kl"}

    config = Config(env=Walk(), algo=Silent(), desired_kl=0.01, **SMALL)
    with pytest.raises(UsageError, match=r"the update of Silent returns no metric kl; .* leave desired_kl = 0\.01 out"):
        jax.eval_shape(lambda key: update_step(config, init(config, key)), jax.random.key(0))


@pytest.mark.thorough
def test_numbers_are_annealed_as_the_learning_rate_is():
    """Update u of U with `anneal` equals one with the number x (1 - u/U) given."""
    config = Config(env=Walk(), algo=PPO(clip_eps=0.02, entropy_coef=0.1), num_epochs=4, learning_rate=0.02, **SMALL)
    state = quick_jit(lambda state: update_step(config, state))(init(config, jax.random.key(0)))[0]
    state = state.replace(update=jnp.asarray(6))
    falling = config.replace(anneal=("clip_eps", "entropy_coef"))
    given = config.replace(algo=PPO(clip_eps=0.02 * 2 / 8, entropy_coef=0.1 * 2 / 8))
    one, two, other = (quick_jit(lambda state, c=c: update_step(c, state))(state)[0] for c in (falling, given, config))
    flat = lambda state: np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.policy)])  # noqa: E731
    np.testing.assert_allclose(flat(one), flat(two), rtol=1e-5, atol=1e-7)
    assert not np.allclose(flat(one), flat(other), rtol=1e-3)


def test_a_time_limit_taken_for_an_end_bootstraps_nothing():
    """The counter pays 1 a step and is cut off: its TD target is 1 then, and 1 + γV otherwise."""
    config = Config(env=StepCounter(), value_target="td0", **SMALL)
    assert config.truncation_as_termination is False
    state, agent = init(config, jax.random.key(0)), Agent.of(config)
    _, seen, _ = rollout(jax.random.key(1), agent.env, agent.make_policy(state), state.rollout, config.num_steps)
    assert np.any(seen.truncated)
    assert not np.any(seen.terminated)
    right = learning_batch(agent, state, seen)[0].value_target
    wrong = learning_batch(Agent.of(config.replace(truncation_as_termination=True)), state, seen)[0].value_target
    cut = np.ravel(seen.truncated)
    np.testing.assert_array_equal(np.asarray(wrong)[cut], np.ravel(seen.reward)[cut])
    np.testing.assert_array_equal(np.asarray(wrong)[~cut], np.asarray(right)[~cut])
    assert np.all(np.asarray(wrong)[cut] != np.asarray(right)[cut])


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
