"""One run's environments on several devices: the mathematics is that of one device with the same data.

The oracle is the same function on one device, given all samples. What is compared comes before any optimiser: Adam
would hide a gradient that is a constant factor off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from support import by_cost, level_1_jit, quick_jit

from purejaxppo import A2C, NPG, PPO, REINFORCE, TRPO, Config, PPOPenalty
from purejaxppo.advantages import explained_variance, standardize
from purejaxppo.agent import Agent
from purejaxppo.cli.run import main
from purejaxppo.improvement import value_loss
from purejaxppo.normalize import RunningStatistics
from purejaxppo.optimize.conjugate_gradient import conjugate_gradient
from purejaxppo.optimize.local_model import local_model
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.parallel.mesh import ENV_AXIS
from purejaxppo.parallel.runs import over_runs
from purejaxppo.train import init, make_train, update_step
from purejaxppo.types import Batch

ALL = [REINFORCE(), A2C(), PPO(), PPOPenalty(), NPG(), TRPO()]
MESH = Mesh(np.asarray(jax.devices()[:2]).reshape(1, 2), ("run", ENV_AXIS), axis_types=(AxisType.Auto,) * 2)
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(ENV_AXIS)


def on_two(fn, *specs, out=WHOLE):
    return quick_jit(jax.shard_map(fn, mesh=MESH, in_specs=specs, out_specs=out, check_vma=False))


def relative(actual, expected):
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64) for tree in (actual, expected)
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def config_of(algo, **settings):
    usual = {"num_envs": 4, "num_steps": 32, "num_minibatches": 1, "num_epochs": 2, "hidden_sizes": (16,)}
    return Config(env="CartPole-v1", algo=algo, total_steps=10**6, **usual | settings)


@pytest.fixture(scope="module")
def problem():
    """Parameters and a batch of 128 samples, whose halves differ in scale and mean."""
    config = config_of(PPO())
    policy = Agent.of(config).policy
    state = init(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    obs = jnp.asarray(rng.normal(size=(128, 4)) * np.linspace(0.5, 2, 128)[:, None], jnp.float32)
    params = jax.tree.map(lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape), jnp.float32), state.policy)
    distribution = policy.apply(params, obs)
    action = distribution.sample(jax.random.key(2))
    numbers = jnp.asarray(rng.normal(size=(3, 128)) + np.linspace(-1, 3, 128), jnp.float32)
    return state, params, Batch(obs, action, distribution.log_prob(action), distribution, *numbers)


@pytest.mark.thorough
def test_moments_and_statistics(problem):
    _, _, batch = problem

    def numbers(batch):
        statistics = RunningStatistics.init((4,)).update(batch.obs[:, None])
        return explained_variance(batch.value, batch.value_target), statistics.update(2 * batch.obs[:, None])

    assert relative(on_two(numbers, SPLIT)(batch), numbers(batch)) < 1e-6
    both = on_two(lambda batch: standardize(batch.advantage), SPLIT, out=SPLIT)(batch)
    assert relative(both, standardize(batch.advantage)) < 1e-6
    across = PartitionSpec(None, ENV_AXIS)  # minibatches [M, N], each with samples of both devices
    minibatches = batch.advantage.reshape(4, 32)
    both = on_two(jax.vmap(standardize), across, out=across)(minibatches)
    exact = np.asarray(minibatches, np.float64)
    exact = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    assert relative(both, exact) < 1e-5


def test_gradient_fisher_product_and_solution(problem):
    _, params, batch = problem
    policy = Agent.of(config_of(TRPO())).policy

    def parts(params, batch):
        advantage = standardize(batch.advantage)
        model = local_model(jax.random.key(0), policy.apply, params, batch, advantage, 0.1, 1)
        solution, _ = conjugate_gradient(model.product, model.gradient, 10)
        where = model.theta + 0.1 * solution
        return model.gradient, model.product(model.theta), solution, model.evaluate(where)

    for name, actual, expected in zip(
        ("gradient", "product", "solution", "gain and KL"),
        on_two(parts, WHOLE, SPLIT)(params, batch),
        parts(params, batch),
        strict=True,
    ):
        assert relative(actual, expected) < 1e-5, name


def test_the_critics_gradient_before_adam(problem):
    """With Adam's moments from one step: m = 0.1 g, v = 0.001 g². A scale error shows in both."""
    state, _, batch = problem
    config = config_of(PPO())

    def moments(critic, batch):
        adam = MinibatchAdam(1e-3, jnp.inf, 1, 1)
        moved = adam.minimize(
            jax.random.key(0), value_loss(Agent.of(config)), critic, MinibatchAdam.init(critic), batch
        )
        return moved[1].mu, moved[1].nu, moved[2]

    actual, expected = on_two(moments, WHOLE, SPLIT)(state.critic, batch), moments(state.critic, batch)
    for a, b in zip(actual, expected, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("algo", by_cost(ALL, [TRPO()], [PPO()]), ids=lambda algo: type(algo).__name__)
def test_an_update_of_the_policy(algo, problem):
    _, params, batch = problem
    policy = Agent.of(config_of(algo)).policy

    def update(params, batch):
        adam = MinibatchAdam(1e-2, 0.5, 2, 1)
        key = jax.random.key(3)
        moved, _, metrics = algo.update(key, policy.apply, params, algo.init(params), batch, adam)
        return jax.tree.map(lambda new, old: new - old, moved, params), metrics

    (actual, actual_metrics), (expected, expected_metrics) = (
        fn(params, batch) for fn in (on_two(update, WHOLE, SPLIT), update)
    )
    assert relative(actual, expected) < 1e-4  # of the step, not of the parameters
    for name, value in expected_metrics.items():
        assert float(actual_metrics[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("algo", by_cost(ALL, [TRPO()], ()), ids=lambda algo: type(algo).__name__)
@pytest.mark.thorough
def test_replicas_stay_bit_identical(algo):
    """After 100 updates, with normalisers, both devices hold the very same parameters, moments and statistics."""
    config = config_of(algo, normalize_observations=True, normalize_rewards=True, num_steps=8, num_minibatches=2)

    def train(key):
        state, metrics = jax.lax.scan(lambda state, _: update_step(config, state), init(config, key), None, 100)
        own = (state.policy, state.critic, state.algorithm, state.critic_optimizer, state.observation_statistics)
        shared = (*own, state.reward_normalizer.statistics, state.update, state.failure, metrics)
        return jax.tree.map(lambda x: x[None], (shared, state.rollout.obs))

    program = jax.shard_map(train, mesh=MESH, in_specs=WHOLE, out_specs=SPLIT, check_vma=False)
    shared, obs = level_1_jit(program)(jax.random.key(0))
    for leaf in jax.tree.leaves(shared):
        first, second = np.asarray(leaf)
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(*np.asarray(obs))  # each has episodes of its own


@pytest.mark.slow
def test_it_learns_as_one_device_does():
    config = config_of(TRPO(), num_steps=256, num_envs=8, num_minibatches=16, num_epochs=10, learning_rate=1e-3)
    config = config.replace(hidden_sizes=(32, 32), total_steps=50 * 2048)
    state, metrics = over_runs(make_train(config), jax.devices(), env_shards=2)(jax.random.split(jax.random.key(1), 1))
    assert np.nanmean(metrics["episode_return"][0, -5:]) > 300
    assert state.rollout.obs.shape == (1, 8, 4)


@pytest.mark.thorough
def test_the_command_trains_and_resumes(tmp_path, capsys):
    flags = "--algo a2c --num-seeds 1 --num-envs 4 --num-steps 32 --total-steps 2560 --final-episodes 2 --quiet".split()
    assert main([*flags, "--mesh", "env=2", "--debug", "--out", str(tmp_path / "two")]) == 0
    assert main([*flags, "--mesh", "env=2", "--out", str(tmp_path / "again")]) == 0
    first, again = ((tmp_path / name / "metrics.csv").read_text() for name in ("two", "again"))
    assert first == again

    assert main([*flags, "--mesh", "env=3", "--out", str(tmp_path / "three")]) == 2
    assert "mesh = 'env=3' takes 3 devices, and there are 2" in capsys.readouterr().err
    flags[5] = "3"
    assert main([*flags, "--mesh", "env=2", "--out", str(tmp_path / "odd")]) == 2
    assert "mesh = 'env=2': env = 2 must divide num_envs = 3" in capsys.readouterr().err
