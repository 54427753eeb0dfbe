"""`tabular` against NumPy in float64; the theory's identities and bounds; and sampling against `tabular`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo import tabular
from purejaxppo.advantages import gae
from purejaxppo.distributions import Categorical
from purejaxppo.envs.base import adapt
from purejaxppo.optimize.fisher import fisher_vector_product
from purejaxppo.optimize.surrogate import surrogate_and_kl
from purejaxppo.rollout import rollout
from purejaxppo.types import Batch, RolloutState
from tests.environments import RestartingMDP
from tests.support import quick_jit

S, A = 5, 3


@pytest.fixture(autouse=True)
def double_precision(request):
    with jax.enable_x64("single_precision" not in request.keywords):
        yield


@pytest.fixture(scope="module")
def example():
    """One MDP and one policy, as NumPy arrays, and the same for `tabular`."""
    rng = np.random.default_rng(0)
    transition, start = rng.dirichlet(np.full(S, 0.4), (S, A)), rng.dirichlet(np.ones(S))
    return transition, rng.normal(size=(S, A)), start, 0.9, rng.normal(size=S * A)


def softmax(theta):
    return jax.nn.softmax(theta.reshape(-1, A))


def softmax_np(theta):
    exp = np.exp(theta.reshape(S, A))
    return exp / exp.sum(1, keepdims=True)


def value_iteration(transition, reward, gamma, policy=None):
    """V of a policy, or the optimal V, from thousands of Bellman backups."""
    v = np.zeros(len(transition))
    for _ in range(2000):
        q = reward + gamma * transition @ v
        v = q.max(1) if policy is None else (policy * q).sum(1)
    return v


def visitation_by_steps(transition, start, gamma, policy):
    step, states, total = np.einsum("sa,sat->st", policy, transition), start, np.zeros(len(start))
    for t in range(2000):
        total, states = total + (1 - gamma) * gamma**t * states, states @ step
    return total


def test_values_and_visitation_are_those_of_value_iteration(example):
    transition, reward, start, gamma, theta = example
    mdp, policy = tabular.MDP(*example[:4]), softmax_np(theta)
    v = value_iteration(transition, reward, gamma, policy)
    q = reward + gamma * transition @ v
    np.testing.assert_allclose(tabular.state_values(mdp, policy), v, rtol=1e-12)
    np.testing.assert_allclose(tabular.action_values(mdp, policy), q, rtol=1e-12)
    np.testing.assert_allclose(tabular.advantages(mdp, policy), q - v[:, None], atol=1e-12)
    np.testing.assert_allclose(tabular.expected_return(mdp, policy), start @ v, rtol=1e-12)
    d = visitation_by_steps(transition, start, gamma, policy)
    np.testing.assert_allclose(tabular.visitation(mdp, policy), d, rtol=1e-12)


def test_optimal_policy_is_the_best_of_all_deterministic_ones(example):
    transition, reward, _, gamma, _ = example
    best = tabular.optimal_policy(tabular.MDP(*example[:4]))
    every = [np.eye(A)[list(actions)] for actions in itertools.product(range(A), repeat=S)]
    optimal = value_iteration(transition, reward, gamma)
    values = [value_iteration(transition, reward, gamma, policy) for policy in every[::9]]
    np.testing.assert_allclose(value_iteration(transition, reward, gamma, np.asarray(best)), optimal, rtol=1e-12)
    assert (np.max(values, axis=0) <= optimal + 1e-12).all()


@pytest.mark.single_precision
@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_policy_iteration_ends_in_single_precision(gamma):
    rng = np.random.default_rng(1)
    transition, reward, start = rng.dirichlet(np.ones(12), (12, A)), rng.normal(size=(12, A)), np.full(12, 1 / 12)
    best = tabular.optimal_policy(tabular.MDP(*map(jnp.float32, (transition, reward, start, gamma))))
    optimal = value_iteration(transition, reward, gamma)
    np.testing.assert_allclose(value_iteration(transition, reward, gamma, np.asarray(best)), optimal, rtol=1e-4)


def test_expected_gae_is_the_sum_of_expected_td_errors(example):
    transition, reward, _, gamma, theta = example
    policy, values, lam = softmax_np(theta), np.linspace(-1.0, 2.0, S), 0.8
    delta = reward + gamma * transition @ values - values[:, None]
    expected, states = delta.copy(), transition
    for step in range(1, 300):
        expected += (gamma * lam) ** step * states @ (policy * delta).sum(1)
        states = states @ np.einsum("sa,sat->st", policy, transition)
    result = tabular.expected_gae(tabular.MDP(*example[:4]), policy, values, lam)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_policy_gradient_is_the_finite_difference_of_the_return(example):
    transition, reward, start, gamma, theta = example

    def eta(theta):
        return start @ value_iteration(transition, reward, gamma, softmax_np(theta))

    differences = [(eta(theta + h) - eta(theta - h)) / 2e-5 for h in 1e-5 * np.eye(S * A)]
    gradient = tabular.policy_gradient(tabular.MDP(*example[:4]), softmax, jnp.asarray(theta))
    np.testing.assert_allclose(gradient, differences, atol=1e-8)


def test_fisher_matrix_is_the_second_difference_of_the_mean_kl(example):
    transition, _, start, gamma, theta = example
    policy = softmax_np(theta)
    d = visitation_by_steps(transition, start, gamma, policy)

    def mean_kl(step):
        return d @ (policy * np.log(policy / softmax_np(theta + step))).sum(1)

    steps = 1e-3 * np.eye(S * A)
    hessian = [
        [(mean_kl(a + b) - mean_kl(a - b) - mean_kl(b - a) + mean_kl(-a - b)) / 4e-6 for a in steps] for b in steps
    ]
    fisher = tabular.fisher_matrix(tabular.MDP(*example[:4]), softmax, jnp.asarray(theta))
    np.testing.assert_allclose(fisher, hessian, atol=1e-6)


@functools.partial(quick_jit, static_argnums=(0, 1, 2))
def many(key, count, num_states=6):
    """Random MDPs with γ from 0 to 0.99, and policies from nearly uniform to nearly deterministic."""
    mdp_key, gamma_key, policy_key, spread_key = jax.random.split(jax.random.key(key), 4)
    gamma = jax.random.uniform(gamma_key, (count,), maxval=0.99)
    mdps = jax.vmap(tabular.random_mdp, (0, None, None, 0))(jax.random.split(mdp_key, count), num_states, A, gamma)
    spread = jnp.exp(jax.random.uniform(spread_key, (count, 1, 1), minval=-3.0, maxval=1.5))
    return mdps, spread * jax.random.normal(policy_key, (count, num_states, A))


def test_performance_difference_on_1000_mdps():
    mdps, logits = many(0, 1000)
    old, new = jax.nn.softmax(logits), jax.nn.softmax(many(1, 1000)[1])

    @quick_jit
    @jax.vmap
    def error(mdp, old, new):
        difference = tabular.expected_return(mdp, new) - tabular.expected_return(mdp, old)
        return tabular.performance_difference(mdp, old, new) - difference

    assert jnp.max(jnp.abs(error(mdps, old, new))) < 1e-10


@pytest.mark.thorough
def test_no_bound_is_violated_by_10000_pairs():
    (mdps, logits), (_, direction) = many(2, 10_000), many(3, 10_000)
    apart = jnp.geomspace(1e-4, 10.0, 10_000)[:, None, None]  # pairs that nearly agree and pairs that do not at all
    old, new = jax.nn.softmax(logits), jax.nn.softmax(logits + apart * direction)
    alpha = jax.random.uniform(jax.random.key(4), (10_000,))

    @quick_jit
    @jax.vmap
    def margins(mdp, old, new, alpha):
        greedy = tabular.greedy_policy(mdp, old)
        eta = functools.partial(tabular.expected_return, mdp)
        mixed, improved = (eta(tabular.mixture(old, target, alpha)) for target in (new, greedy))
        small = tabular.cpi_alpha(mdp, old, greedy)
        gain = tabular.policy_advantage(mdp, old, greedy, tabular.visitation(mdp, old))
        return (
            jnp.stack(
                [
                    eta(new) - tabular.monotonic_bound(mdp, old, new),
                    mixed - tabular.cpi_bound(mdp, old, new, alpha),
                    improved - tabular.cpi_bound(mdp, old, greedy, alpha),
                    eta(tabular.mixture(old, greedy, small))
                    - eta(old)
                    - small * gain / 2,  # corollary 4.2: A²/8ε = αA/2(1-γ)
                ]
            ),
            tabular.monotonic_bound(mdp, old, new) - eta(old),
            tabular.cpi_bound(mdp, old, greedy, small) - eta(old),
        )

    margin, promised, promised_by_cpi = margins(mdps, old, new, alpha)
    assert margin.shape == (10_000, 4)
    assert jnp.min(margin) > -1e-10
    assert jnp.mean(promised > 0) > 0.02  # and they do promise something
    assert jnp.all(promised_by_cpi > 0)


@pytest.mark.slow
def test_conservative_policy_iteration_and_minorise_maximise_never_get_worse():
    mdps, logits = many(5, 50)

    def path(step, mdp, policy):
        def iterate(policy, _):
            return step(mdp, policy), tabular.expected_return(mdp, policy)

        return jax.lax.scan(iterate, policy, None, 30)[1]

    def minorise_maximise(mdp, policy):
        return tabular.max_kl_penalty_step(mdp, policy, tabular.penalty_coefficient(mdp, policy))

    for step in (tabular.cpi_step, minorise_maximise):
        eta = quick_jit(jax.vmap(functools.partial(path, step)))(mdps, jax.nn.softmax(logits))
        gains = jnp.diff(eta, axis=1)
        assert jnp.min(gains) > -1e-12
        assert jnp.mean(gains[:, 0] > 0) > 0.99


def test_steps_without_a_penalty_are_greedy_and_a_policy_at_the_edge_has_a_fisher_matrix():
    """A bandit has γ = 0, and so C = 0; a softmax may round to 0."""
    reward = jnp.array([[1.0, 0.0, 2.0]])
    bandit, uniform = tabular.MDP(jnp.ones((1, 3, 1)), reward, jnp.ones(1), 0.0), jnp.full((1, 3), 1 / 3)
    coefficient = tabular.penalty_coefficient(bandit, uniform)
    assert coefficient == 0
    np.testing.assert_allclose(tabular.mean_kl_penalty_step(bandit, uniform, coefficient), [[0, 0, 1]], atol=1e-6)
    nothing = bandit._replace(reward=0 * reward)
    np.testing.assert_allclose(tabular.mean_kl_penalty_step(nothing, uniform, 0.0), uniform, atol=1e-9)
    theta = jnp.array([2000.0, 0.0, 0.0])
    assert softmax(theta)[0, 1] == 0
    np.testing.assert_array_equal(tabular.fisher_matrix(bandit, softmax, theta), np.zeros((3, 3)))


@pytest.mark.thorough
def test_each_step_is_the_best_within_its_region():
    mdp, logits = jax.tree.map(lambda x: x[1], many(6, 2))
    policy, coefficient, max_kl = jax.nn.softmax(logits), 3.0, 0.02
    d = tabular.visitation(mdp, policy)

    def mean_kl(new):
        return d @ tabular.kl(policy, new)

    objectives = {
        tabular.max_kl_penalty_step: lambda new: -coefficient * jnp.max(tabular.kl(policy, new)),
        tabular.mean_kl_penalty_step: lambda new: -coefficient * mean_kl(new),
        tabular.mean_kl_constraint_step: lambda new: jnp.where(mean_kl(new) <= max_kl, 0.0, -jnp.inf),
    }
    for step, penalty in objectives.items():
        best = quick_jit(step)(mdp, policy, max_kl if step is tabular.mean_kl_constraint_step else coefficient)
        np.testing.assert_allclose(best.sum(1), 1.0, rtol=1e-12)
        noise = jnp.geomspace(1e-5, 1.0, 3000)[:, None, None] * jax.random.normal(jax.random.key(7), (3000, 6, A))
        others = jax.nn.softmax(jnp.concatenate([jnp.log(p)[None] + noise for p in (best, policy)]))
        value = quick_jit(jax.vmap(lambda new, penalty=penalty: tabular.surrogate(mdp, policy, new) + penalty(new)))
        found = value(jnp.concatenate([best[None], policy[None], others]))
        if step is tabular.mean_kl_constraint_step:
            np.testing.assert_allclose(mean_kl(best), max_kl, rtol=1e-9)
            found = found.at[0].set(tabular.surrogate(mdp, policy, best))  # it lies on the boundary, up to rounding
        assert found[0] > found[1] + 1e-3
        assert jnp.sum(jnp.isfinite(found)) > 2000
        assert found[0] >= jnp.max(found[2:]) - 1e-9


@pytest.mark.single_precision
@pytest.mark.thorough
def test_sampled_gradient_gae_and_fisher_product_converge_at_the_monte_carlo_rate(example):
    """Errors, over 64 repetitions, fall as N^-½ from N = 512 to 16,384 samples; V is wrong on purpose."""
    mdp = tabular.MDP(*(jnp.asarray(x, jnp.float32) for x in example[:4]))
    theta, lam = jnp.asarray(example[4], jnp.float32), 0.7
    policy = softmax(theta)
    with jax.enable_x64(True):
        exact = tabular.MDP(*example[:4]), softmax(jnp.asarray(example[4]))
        v, d = tabular.state_values(*exact), tabular.visitation(*exact)
        critic = v + jnp.linspace(-1.0, 1.0, S)
        advantage = tabular.expected_gae(*exact, critic, lam)
        tangent = jnp.sin(jnp.arange(S * A))
        gradient = (1 - mdp.gamma) * tabular.policy_gradient(exact[0], softmax, jnp.asarray(example[4]))
        product = tabular.fisher_matrix(exact[0], softmax, jnp.asarray(example[4])) @ tangent
    v, d, critic, advantage, tangent, gradient, product = (
        jnp.asarray(np.asarray(x), jnp.float32) for x in (v, d, critic, advantage, tangent, gradient, product)
    )
    env, num_envs, sizes = adapt(RestartingMDP(mdp)), 8, (64, 512, 2048)

    def distribution(theta, obs):
        return Categorical(theta.reshape(S, A)[obs])

    @quick_jit
    @jax.vmap
    def errors(key):
        start_key, key = jax.random.split(key)
        states = jax.random.choice(start_key, S, (num_envs,), p=d)  # every step's state is then distributed as d
        start = RolloutState(states, states, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32))
        _, x, _ = rollout(key, env, lambda obs, *_: (distribution(theta, obs), ()), start, sizes[-1] + 50)

        def estimate(values):
            done = x.terminated | x.truncated
            return gae(x.reward, values[x.obs], values[x.next_obs], x.terminated, done, 1.0, lam)

        unbiased, biased = estimate(v), estimate(critic)

        def of(steps):
            def flat(x):
                return x[:steps].reshape(-1, *x.shape[2:])

            taken = jax.tree.map(flat, (x.obs, x.action, x.distribution, unbiased, biased))
            obs, action, old, good, bad = taken
            batch = Batch(obs, action, old.log_prob(action), old, v[obs], good, good)
            evaluate = surrogate_and_kl(distribution, lambda theta: theta, batch, good)
            sampled = jax.grad(lambda theta: evaluate(theta)[0])(theta)
            curvature = fisher_vector_product(lambda theta: distribution(theta, obs), theta, 0.0)(tangent)
            mean = jnp.zeros((S, A)).at[obs, action].add(bad) / len(obs)
            pairs = (sampled, gradient), (curvature, product), (mean, d[:, None] * policy * advantage)
            return [jnp.mean((a - b) ** 2) for a, b in pairs]

        return jnp.stack([jnp.stack(of(steps)) for steps in sizes])

    rms = np.sqrt(np.mean(errors(jax.random.split(jax.random.key(0), 64)), axis=0))  # [sizes, 3]
    slopes = np.polyfit(np.log(sizes), np.log(rms), 1)[0]
    np.testing.assert_allclose(slopes, -0.5, atol=0.08)
    sizes_of = [np.sqrt(np.mean(np.square(x))) for x in (gradient, product, d[:, None] * policy * advantage)]
    assert (rms[-1] < 0.15 * np.asarray(sizes_of)).all()
