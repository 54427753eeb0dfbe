"""What the host does with other spaces: runs, reads back, draws and exports their policies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Probe
from support import by_cost

from purejaxppo import A2C, Config, init
from purejaxppo.agent import Agent
from purejaxppo.experiment.experiment import run_experiment
from purejaxppo.policy.acting import actor
from purejaxppo.policy.export import export_policy, largest_difference, observations
from purejaxppo.policy.frames import player
from purejaxppo.policy.load import Trained, load
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete

KEY = jax.random.key(0)
BOX = Probe(Box(-2.0, 1.0, (2, 1)))
CONFIGS = {
    "gaussian": Config(env=BOX),
    "tanh-gaussian": Config(env=BOX, action_distribution="tanh-gaussian"),
    "beta": Config(env=BOX, action_distribution="beta"),
    "masked": Config(env=Probe(Discrete(4), "dict", (False, True, True, True)), normalize_observations=True),
    "multi-discrete": Config(env=Probe(MultiDiscrete((2, 3)), "dict", (False, True) * 2 + (True,))),
    "multi-binary": Config(env=Probe(MultiBinary(3), "integer")),
}
SMALL = {"num_envs": 4, "num_steps": 8, "total_steps": 64, "num_minibatches": 2, "hidden_sizes": (8,)}


@functools.cache
def stub(kind):
    """A policy far from uniform, as `load` would return it."""
    config = CONFIGS[kind].replace(**SMALL)
    state = jax.jit(lambda key: init(config, key))(KEY)
    keys = iter(jax.random.split(KEY, 20))
    state = state.replace(policy=jax.tree.map(lambda x: 0.7 * jax.random.normal(next(keys), x.shape), state.policy))
    return Trained(config, 0, state, 0, actor(config, state))


@pytest.mark.parametrize("kind", by_cost(CONFIGS, ["masked"], ()))
def test_act_gives_what_the_environment_receives(kind):
    """One or a batch, the mode or a sample; Box actions as the formulas of their distributions have them."""
    trained, obs = stub(kind), observations(stub(kind))
    space = trained.config.environment.action_space
    for key in (None, KEY):
        actions = np.asarray(trained.act(obs, key))
        assert actions.shape == (1000, *space.shape)
        distribution, _ = Agent.of(trained.config).make_policy(trained.state)(obs)
        drawn = np.asarray(distribution.mode() if key is None else distribution.sample(key))
        if isinstance(space, Box):
            unit = {"gaussian": (drawn + 2) / 3, "beta": drawn, "tanh-gaussian": (np.tanh(drawn) + 1) / 2}[kind]
            drawn = (-2 + 3 * np.clip(unit, 0, 1)).reshape(-1, 2, 1)
        np.testing.assert_allclose(actions, drawn, atol=1e-5)
    np.testing.assert_allclose(trained.act(jax.tree.map(lambda x: x[7], obs)), trained.act(obs)[7], atol=1e-6)
    episode = player(trained.config, 2)(trained.state, KEY)
    assert len(episode.states) == 2
    assert episode.totals[-1] <= 1.0


EXPORTS = "tanh-gaussian.onnx masked.onnx multi-discrete.onnx beta.jax masked.jax".split()


@pytest.mark.parametrize("name", by_cost(EXPORTS, ["masked.onnx"], ()))
@pytest.mark.thorough
def test_exported_files_act_as_the_policy(name, tmp_path):
    assert export_policy(stub(name.partition(".")[0]), tmp_path / name) <= 1e-5


@pytest.mark.parametrize("kind", ["multi-discrete", pytest.param("multi-binary", marks=pytest.mark.slow)])
def test_a_wrong_action_of_one_factor_is_a_difference(kind):
    trained, obs = stub(kind), observations(stub(kind))
    actions = np.array(trained.act(obs))
    assert largest_difference(trained, obs, actions) == 0
    actions[5, 1] = 1 - actions[5, 1]
    assert largest_difference(trained, obs, actions) > 1e-3


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_is_read_back_with_its_distribution_and_entries(tmp_path):
    config = Config(env=BOX, algo=A2C(), action_distribution="beta", layer_norm=True, **SMALL)
    run_experiment(config, 2, tmp_path / "run", devices=1, options={"final_episodes": 2})
    trained = load(tmp_path / "run", 1, env=BOX)
    assert (trained.config.action_distribution, trained.config.layer_norm) == ("beta", True)
    action = trained.act(jnp.ones((5, 1)))
    assert action.shape == (5, 2, 1)
    assert np.all((action > -2) & (action < 1))
