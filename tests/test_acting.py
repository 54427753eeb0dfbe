"""`act`: observations as the environment gives them, in lists or arrays, and what is said of those that are not."""

import functools

import gymnasium
import host_environments  # noqa: F401  registers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from environments import Probe
from flax import linen as nn
from support import by_cost

from purejaxppo import UsageError, init, load, preset, resume_experiment, run_experiment
from purejaxppo.policy.acting import actor

SMALL = {"num_envs": 2, "num_steps": 4, "total_steps": 8, "hidden_sizes": (4,)}
HOST = "gymnasium/host_environments:Spaces-v0"
SPACES = {  # environment ↦ an observation as it gives it
    "CartPole-v1": [0.1, 0, -0.1, 0],
    "integer": 1,
    HOST: {
        "picture": np.full((4, 4, 1), 200, np.uint8),
        "place": 3,
        "nested": (np.array([0, 1], np.int8), [2, 3]),
        "action_mask": [1, 0, 1],
    },
}


@functools.cache
def policy(env):
    config = preset("a2c", Probe(observes="integer") if env == "integer" else env, **SMALL)
    with config.environment:
        return actor(config, init(config, jax.random.key(0)))


@pytest.mark.parametrize("env", by_cost(SPACES, [*SPACES][:1]))
def test_lists_numpy_and_jax_arrays_are_the_same_observation(env):
    act, obs = policy(env), SPACES[env]
    is_part = lambda x: not isinstance(x, dict | tuple)  # noqa: E731
    action = np.asarray(act(obs))
    for convert in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(act(jax.tree.map(convert, obs, is_leaf=is_part)), action)
    batch = jax.tree.map(lambda x: np.stack([x] * 3), obs, is_leaf=is_part)
    np.testing.assert_array_equal(act(batch), [action] * 3)
    np.testing.assert_array_equal(jax.jit(act)(jax.tree.map(jnp.asarray, obs, is_leaf=is_part)), action)


@pytest.mark.thorough
def test_actions_are_those_of_gymnasiums_space():
    """Discrete(3, start=-1), of which the mask forbids the middle; `place` is one of 2 … 6."""
    space = gymnasium.make("Spaces-v0").action_space
    drawn = {int(policy(HOST)(SPACES[HOST], jax.random.key(i))) for i in range(20)}
    assert drawn == {-1, 1}
    assert policy(HOST)(SPACES[HOST], jax.random.key(0)) in space


BAD = [
    ("CartPole-v1", [1.0, 2.0, 3.0], "obs has shape [3]; pass float32 [4], or a batch of them."),
    ("CartPole-v1", 1.0, "obs has shape []; pass float32 [4]"),
    ("CartPole-v1", ["a"] * 4, "obs is <U1; pass float32 [4]"),
    ("CartPole-v1", [[1, 2], [3]], "obs cannot be read (ValueError"),
    ("integer", 0.5, "obs is float64; pass int32 []"),
    ("integer", 2, "obs is not one of the 2 whole numbers of its space"),
    (HOST, SPACES[HOST] | {"place": 3.7}, "obs cannot be read (UsageError: 3.7 is no int32"),
    (HOST, SPACES[HOST] | {"place": np.nan}, "obs cannot be read (UsageError: nan is no int32"),
    (HOST, SPACES[HOST] | {"picture": np.full((4, 4, 1), 0.5)}, "obs cannot be read (UsageError: 0.5 is no uint8"),
    (HOST, SPACES[HOST] | {"picture": np.full((4, 4, 1), 256)}, "obs cannot be read (UsageError: 256 is no uint8"),
]


@pytest.mark.parametrize(("env", "obs", "told"), BAD)
def test_what_is_no_observation_is_named_in_one_line(env, obs, told):
    with pytest.raises(UsageError) as caught:
        policy(env)(obs)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_entry_that_is_missing_or_of_another_batch_is_named():
    act, obs = policy(HOST), SPACES[HOST]
    with pytest.raises(UsageError, match=r"KeyError: 'place'.*a dictionary of action_mask, nested.0,"):
        act({entry: x for entry, x in obs.items() if entry != "place"})
    with pytest.raises(UsageError, match=r"obs\['place'\] is a batch \[2\], but other entries \[\]"):
        act(obs | {"place": [3, 4]})
    with pytest.raises(UsageError, match=r"obs\['place'\] is not one of the 5 whole numbers"):
        act(obs | {"place": 1})


@pytest.mark.thorough
def test_a_run_with_modules_of_the_users_own_is_read_back_with_them(tmp_path):
    modules = {"policy_network": nn.Dense(2), "critic_network": nn.Sequential([nn.Dense(1), lambda x: x[..., 0]])}
    modules["optimizer"] = optax.lion
    config = preset("a2c", "CartPole-v1", **SMALL, **modules)
    run_experiment(config, 1, tmp_path / "run", devices=1, options={"final_episodes": 1})
    trained = load(tmp_path / "run", 0, **modules)
    kernel, bias = (np.asarray(trained.state.policy["params"]["network"][name]) for name in ("kernel", "bias"))
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(trained.act(obs), np.argmax(obs @ kernel + bias, axis=1))
    longer = resume_experiment(tmp_path / "run", 16, **modules)
    assert longer.summary["env_steps"] == 16
    with pytest.raises(UsageError, match=r"policy_network = 'Dense\(.*give it again"):
        load(tmp_path / "run", 0)
    with pytest.raises(UsageError, match=r"optimizer = '<function lion>' is a function of yours; give it again"):
        load(tmp_path / "run", 0, **modules | {"optimizer": None})
    with pytest.raises(UsageError, match="of another network size"):
        load(tmp_path / "run", 0, **modules | {"policy_network": nn.Sequential([nn.Dense(3), nn.Dense(2)])})
