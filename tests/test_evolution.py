"""CEM and CMA-ES: generations against NumPy in float64, optima, and runs that evolve members in environments."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Count, StepCounter, Walk
from support import assert_same_bits, by_cost, largest_difference, quick_jit

from purejaxppo import CEM, CMAES, Config, evaluate, init, make_train, over_runs, preset, update_step
from purejaxppo.agent import Agent
from purejaxppo.errors import UsageError
from purejaxppo.evolve import fitness_of, members_policy
from purejaxppo.spaces import Box

KEY = jax.random.key(0)
STRATEGIES = {
    "cem": CEM(initial_std=1.0, extra_std=0.5, extra_decay=60.0, elite_fraction=0.25),
    "full": CMAES(covariance="full"),
    "diagonal": CMAES(covariance="diagonal"),
}
EACH = pytest.mark.parametrize("name", STRATEGIES)
SMALL = {"num_envs": 6, "num_steps": 16, "total_steps": 4 * 6 * 16, "hidden_sizes": (4,)}


def ellipsoid(x):
    """Σ 10^(i/(D-1)) (x_i - 1)², which is least at 1."""
    return (x - 1.0) ** 2 @ 10.0 ** np.linspace(0.0, 1.0, x.shape[-1], dtype=np.float32)


@EACH
def test_it_finds_the_optimum_of_a_convex_function(name):
    """And stays there, when all members are equal in float32."""
    strategy, start = STRATEGIES[name], jnp.zeros(8)

    @quick_jit
    def search(key):
        def generation(carry, key):
            members = strategy.ask(key, *carry, 40)
            mean, state, metrics = strategy.tell(*carry, members, -ellipsoid(members))
            return (mean, state), metrics["search_std"]

        return jax.lax.scan(generation, (start, strategy.init(start)), jax.random.split(key, 800))

    (mean, _), spread = search(KEY)
    np.testing.assert_allclose(mean, np.ones(8), atol=5e-3)
    assert spread[-1] < 1e-2 * spread[0]


def cem_in_numpy(strategy, mean, std, g, members, fitness):
    """Szita and Lörincz (2006), table 1, with rllab's decay: the next mean and σ, and what members were drawn with."""
    best = sorted(range(len(fitness)), key=lambda i: -fitness[i])[
        : max(2, round(strategy.elite_fraction * len(fitness)))
    ]
    elites = np.array([members[i] for i in best])
    drawn_with = np.sqrt(std**2 + strategy.extra_std**2 * max(0.0, 1.0 - g / strategy.extra_decay))
    return elites.mean(0), elites.std(0), np.sqrt((drawn_with**2).mean())


class CMAESInNumPy:
    """Appendix A of arXiv:1604.00772, line by line; diagonal: Ros and Hansen (2008), algorithm 1."""

    def __init__(self, mean, sigma, num_members, full):
        self.m, self.sigma, self.full, self.g = mean, sigma, full, 0
        n, lam = len(mean), num_members
        self.C, self.p_sigma, self.p_c = np.eye(n), np.zeros(n), np.zeros(n)
        raw = [np.log((lam + 1) / 2) - np.log(i + 1) for i in range(lam)]
        self.mu = mu = lam // 2
        self.mu_eff = sum(raw[:mu]) ** 2 / sum(w**2 for w in raw[:mu])
        worse = sum(raw[mu:]) ** 2 / sum(w**2 for w in raw[mu:])
        self.c_c = (4 + self.mu_eff / n) / (n + 4 + 2 * self.mu_eff / n)
        self.c_1 = 2 / ((n + 1.3) ** 2 + self.mu_eff)
        self.c_mu = 2 * (1 / 4 + self.mu_eff + 1 / self.mu_eff - 2) / ((n + 2) ** 2 + self.mu_eff)
        if not full:
            self.c_1, self.c_mu = self.c_1 * (n + 2) / 3, self.c_mu * (n + 2) / 3
        self.c_mu = min(1 - self.c_1, self.c_mu)
        alpha = min(
            1 + self.c_1 / self.c_mu, 1 + 2 * worse / (self.mu_eff + 2), (1 - self.c_1 - self.c_mu) / n / self.c_mu
        )
        plus, minus = sum(w for w in raw if w > 0), -sum(w for w in raw if w < 0)
        self.w = [w / plus if w >= 0 else (alpha * w / minus if full else 0.0) for w in raw]
        self.c_sigma = (self.mu_eff + 2) / (n + self.mu_eff + 5)
        self.d_sigma = 1 + 2 * max(0, np.sqrt((self.mu_eff - 1) / (n + 1)) - 1) + self.c_sigma
        self.chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))

    def tell(self, members, fitness):
        n = len(self.m)
        order = sorted(range(len(fitness)), key=lambda i: -fitness[i])
        y = [(members[i] - self.m) / self.sigma for i in order]
        values, B = np.linalg.eigh(self.C)
        root = B @ np.diag(values**-0.5) @ B.T
        y_w = sum(self.w[i] * y[i] for i in range(self.mu))
        self.m = self.m + self.sigma * y_w
        self.p_sigma = (1 - self.c_sigma) * self.p_sigma
        self.p_sigma = self.p_sigma + np.sqrt(self.c_sigma * (2 - self.c_sigma) * self.mu_eff) * root @ y_w
        length = np.linalg.norm(self.p_sigma)
        self.g += 1
        h = length / np.sqrt(1 - (1 - self.c_sigma) ** (2 * self.g)) < (1.4 + 2 / (n + 1)) * self.chi
        self.sigma *= np.exp(self.c_sigma / self.d_sigma * (length / self.chi - 1))
        self.p_c = (1 - self.c_c) * self.p_c + h * np.sqrt(self.c_c * (2 - self.c_c) * self.mu_eff) * y_w
        delta = (1 - h) * self.c_c * (2 - self.c_c)
        C = (1 + self.c_1 * delta - self.c_1 - self.c_mu * sum(self.w)) * self.C
        C = C + self.c_1 * np.outer(self.p_c, self.p_c)
        for w, v in zip(self.w, y, strict=True):
            C = C + self.c_mu * (w if w >= 0 else w * n / np.sum((root @ v) ** 2)) * np.outer(v, v)
        self.C = C if self.full else np.diag(np.diag(C))


@pytest.mark.parametrize("num_members", [7, 12])
@EACH
def test_generations_are_those_of_float64(name, num_members):
    """Twelve in a row, each from the same members and fitness as NumPy has; some steps are so long that C waits."""
    strategy = STRATEGIES[name].replace(elite_fraction=0.3) if name == "cem" else STRATEGIES[name]
    mean, tell = jnp.asarray([0.5, -1.0, 0.0, 2.0, 0.1]), quick_jit(strategy.tell)
    state, waited = strategy.init(mean), 0
    m, std = np.asarray(mean, np.float64), np.ones(5)
    exact = None if name == "cem" else CMAESInNumPy(m, strategy.initial_sigma, num_members, name == "full")
    for g, key in enumerate(jax.random.split(KEY, 12)):
        members = strategy.ask(key, mean, state, num_members)
        assert members.shape == (num_members, 5)
        fitness = -ellipsoid(members - 30.0 * (g < 6))  # far away at first
        mean, state, metrics = tell(mean, state, members, fitness)
        x, f = np.asarray(members, np.float64), np.asarray(fitness, np.float64)
        if name == "cem":
            m, std, spread = cem_in_numpy(strategy, m, std, g, x, f)
            np.testing.assert_allclose(state.std, std, rtol=1e-4)
        else:
            spread = exact.sigma * np.sqrt(np.diag(exact.C).mean())
            before = exact.p_c
            exact.tell(x, f)
            waited += np.allclose(exact.p_c, (1 - exact.c_c) * before)
            m, C = exact.m, exact.C if name == "full" else np.diag(exact.C)
            np.testing.assert_allclose(state.covariance, C, rtol=1e-3, atol=1e-3 * np.abs(C).max())
            np.testing.assert_allclose(state.sigma, exact.sigma, rtol=1e-3)
        np.testing.assert_allclose(mean, m, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(metrics["search_std"], spread, rtol=1e-3)
    assert name == "cem" or waited


@EACH
def test_members_are_drawn_from_the_distribution_that_the_state_names(name):
    """Mean and covariance of 200,000 members, after a generation that made the distribution no sphere."""
    strategy, mean = STRATEGIES[name], jnp.asarray([0.5, -1.0, 0.0])
    state = strategy.init(mean)
    first = strategy.ask(KEY, mean, state, 12)
    mean, state, _ = strategy.tell(mean, state, first, -ellipsoid(first))
    members = np.asarray(strategy.ask(jax.random.key(1), mean, state, 200_000), np.float64)
    if name == "cem":
        expected = np.diag(np.asarray(state.std) ** 2 + strategy.extra_std**2 * (1 - 1 / strategy.extra_decay))
    else:
        covariance = np.asarray(state.covariance)
        expected = np.asarray(state.sigma) ** 2 * (covariance if name == "full" else np.diag(covariance))
    np.testing.assert_allclose(members.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(np.cov(members.T), expected, atol=0.02 * expected.max())


def test_small_policies_have_a_full_covariance_and_large_ones_its_diagonal():
    assert CMAES().init(jnp.zeros(200)).covariance.shape == (200, 200)
    assert CMAES().init(jnp.zeros(201)).covariance.shape == (201,)


@pytest.mark.parametrize("envs_per_member", [1, 3])
def test_fitness_is_the_mean_return_of_completed_episodes(envs_per_member):
    """Against loops; some members complete none."""
    rng = np.random.default_rng(0)
    reward, done = rng.normal(size=(20, 12)).astype(np.float32), rng.random((20, 12)) < 0.1
    done[:, :4] = False
    expected = []
    for first in range(0, 12, envs_per_member):
        completed, unfinished = [], []
        for env in range(first, first + envs_per_member):
            total = 0.0
            for t in range(20):
                total += reward[t, env]
                if done[t, env]:
                    completed.append(total)
                    total = 0.0
            unfinished.append(total)
        expected.append(np.mean(completed or unfinished))
    np.testing.assert_allclose(fitness_of(reward, jnp.asarray(done), envs_per_member), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recurrent", by_cost(["none", "gru"], ["gru"]))
def test_each_member_acts_in_its_own_environments(recurrent):
    """As its parameters alone would, on observations normalised as the run's are."""
    config = Config(
        env=Walk(continuous=True), algo=CEM(envs_per_member=2), recurrent=recurrent, recurrent_size=3, **SMALL
    )
    config = config.replace(normalize_observations=True)
    agent, state = Agent.of(config), quick_jit(init)(config, KEY)
    obs = jax.random.normal(KEY, (6, 2))
    statistics = state.observation_statistics.update(3.0 * obs)
    state, start = state.replace(observation_statistics=statistics), jnp.ones(6, bool)
    members = jax.tree.map(lambda x: x[None] + jax.random.normal(KEY, (3, *x.shape)), state.policy)
    act = quick_jit(members_policy(agent, state, members))
    alone = quick_jit(lambda policy, *inputs: agent.make_policy(state.replace(policy=policy))(*inputs))
    greedy, hidden = act(obs, state.rollout.hidden, start)
    action = greedy.sample_with(greedy.noise(KEY))
    for env in range(6):
        member = jax.tree.map(lambda x, i=env // 2: x[i], members)
        own = jax.tree.map(lambda x, i=env: x[i], state.rollout.hidden)
        expected, after = alone(member, obs[env], own, start[env])
        np.testing.assert_allclose(action[env], expected.mode(), rtol=1e-5, atol=1e-6)
        assert largest_difference(jax.tree.map(lambda x, i=env: x[i], hidden), after) < 1e-5


@dataclasses.dataclass(frozen=True)
class Draw(StepCounter):
    """Reward: the action. No chance is in it."""

    @property
    def action_space(self):
        return Box(-5.0, 5.0, (1,))

    def step(self, key, state, action):
        state, obs, _, *ends = super().step(key, state, action)
        return Count(state.steps), obs, action[0], *ends


@pytest.mark.parametrize(
    "algo", [*(pytest.param(x, marks=pytest.mark.slow) for x in (CEM(), CMAES())), CEM(envs_per_member=3)]
)
@pytest.mark.thorough
def test_two_devices_that_share_the_members_find_what_one_does(algo):
    config = Config(env=Draw(), algo=algo, **SMALL | {"num_envs": 12})
    one = quick_jit(jax.vmap(make_train(config)))(KEY[None])
    two = over_runs(make_train(config), jax.devices()[:2], env_shards=2)(KEY[None])
    assert largest_difference(one[0].policy, two[0].policy) < 1e-5
    assert largest_difference(one[1], two[1]) < 1e-4


@pytest.mark.parametrize("algo", by_cost([CEM(), CMAES()], [CEM()]))
def test_a_generation_depends_on_nothing_that_was_left_unfinished(algo):
    """Episodes of 9 steps in rollouts of 4: all begin anew, and other ones that are under way change nothing."""
    config = Config(env=Walk(), algo=algo, **SMALL | {"num_steps": 4})
    begin = quick_jit(functools.partial(init, config))
    state = begin(KEY)
    odd = begin(jax.random.key(5)).rollout._replace(episode_length=jnp.full(6, 3, jnp.int32))
    update = quick_jit(functools.partial(update_step, config))
    (first, metrics), (second, _) = update(state), update(state.replace(rollout=odd))
    assert_same_bits(first, second)
    assert metrics["episodes"] < 3
    assert np.isfinite(metrics["fitness_best"])
    assert set(np.asarray(first.rollout.episode_length).tolist()) <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"learning_rate": 0.1}, ["learning_rate = 0.1", "no gradient", "leave it out"]),
        ({"shared_torso": True}, ["shared_torso = True", "leave it out"]),
        ({"normalize_rewards": True}, ["normalize_rewards = True"]),
        ({"num_minibatches": 4}, ["num_minibatches = 4"]),
        ({"desired_kl": 0.01}, ["desired_kl = 0.01"]),
        ({"critic_obs": ("x",)}, ["critic_obs"]),
        ({"envs_per_member": 4}, ["num_envs = 6", "envs_per_member = 4", "pass 8"]),
        ({"num_envs": 1}, ["num_envs = 1", "at least 2 members", "pass 2"]),
    ],
)
@pytest.mark.parametrize("algo", ["cem", "cma-es"])
def test_what_would_do_nothing_is_refused_in_one_line(algo, settings, parts):
    with pytest.raises(UsageError) as told:
        preset(algo, "CartPole-v1", **SMALL | settings).check()
    assert all(part in str(told.value) for part in parts)
    assert "\n" not in str(told.value)


def test_devices_that_cannot_share_members_are_refused():
    config = preset("cem", "CartPole-v1", **SMALL, envs_per_member=2)
    for shape, part in (((2, 1), "3 members"), ((1, 2), "no critic")):
        with pytest.raises(UsageError, match=part):
            config.check_mesh(*shape)
    config.check_mesh(3, 1)


PROGRAM = """
import conftest, jax
from purejaxppo import CMAES, Config, make_train
settings = dict(num_envs=4, num_steps=4, total_steps=1600, hidden_sizes=(16,))
config = Config(env="CartPole-v1", algo=CMAES(covariance="full"), **settings)
_, metrics = jax.block_until_ready(jax.jit(jax.vmap(make_train(config)))(jax.random.split(jax.random.key(0), 16)))
print(bool(jax.numpy.isfinite(metrics["sigma"]).all()))
"""


@pytest.mark.slow
def test_eigenvectors_of_many_runs_do_not_hang():
    """16 runs, 100 generations each, of 114 parameters: batched LAPACK would block its own threads."""
    tests = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, timeout=120, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True"]


def test_cem_learns_cartpole():
    """A linear policy, 12 generations: the mean's greedy episodes last ten times as long as a random policy's."""
    settings = {"num_envs": 24, "num_steps": 200, "total_steps": 12 * 24 * 200}
    config = preset("cem", "CartPole-v1", **settings, hidden_sizes=(), extra_decay=5.0)

    @quick_jit
    def run(key):
        state, metrics = make_train(config)(key)
        return metrics["episode_return"], jnp.mean(evaluate(config, state, key, 8).returns)

    during, after = run(KEY)
    assert during[0] < 60
    assert after > 200


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "solved"), [("cem", 10), ("cma-es", 9)])
def test_cartpole_is_solved_by_so_many_of_ten_seeds(algo, solved):
    """With the preset: greedy episodes of 475 steps and more. One seed of CMA-ES ended at 312."""
    config = preset(algo, "CartPole-v1")

    def run(key):
        state, _ = make_train(config)(key)
        return jnp.mean(evaluate(config, state, key, 100).returns)

    returns = over_runs(run, jax.devices())(jax.random.split(KEY, 10))
    assert np.sum(np.asarray(returns) >= 475.0) >= solved, returns
