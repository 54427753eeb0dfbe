"""With `jax_enable_x64` everything is as it is without: float32, and the same program, so the same bits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo import load, make_train, preset
from purejaxppo.cli.run import main
from purejaxppo.presets import PRESETS

OURS = [case for case in PRESETS if "/" not in case[1]]  # those of no extra
MINATAR = [case for case in OURS if case[1].endswith("-MinAtar")]  # of equal settings


@pytest.fixture
def x64():
    """Switched on in all threads."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def program(config):
    """The whole of training as text."""
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(make_train(config))(jax.random.key(0))))


@pytest.mark.parametrize(
    ("algo", "env"), [*(case for case in OURS if case not in MINATAR), ("ppo", "Breakout-MinAtar")]
)
def test_every_preset_is_the_same_program(algo, env):
    config = preset(algo, env)
    expected = program(config)
    with jax.enable_x64(True):
        assert program(config) == expected


@pytest.mark.parametrize(("algo", "env"), [("ppo", "Freeway-MinAtar")])
def test_environments_that_cannot_do_otherwise_train(algo, env):
    """With float64, gymnax's step itself raises a TypeError."""
    config = preset(algo, env)
    with jax.enable_x64(True):
        state, _ = jax.eval_shape(make_train(config), jax.random.key(0))
    assert state.rollout.env.time.dtype == jnp.int32


def test_a_number_that_is_float64_is_rounded():
    with jax.enable_x64(True):
        rates = jnp.asarray([1e-3, 2e-3])
        train = jax.vmap(lambda rate: make_train(preset("a2c", "Pendulum-v1", learning_rate=rate))(jax.random.key(0)))
        state, metrics = jax.eval_shape(train, rates)
    floats = {x.dtype for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert (rates.dtype, floats) == (jnp.float64, {np.dtype("float32")})


def test_the_command_trains_and_the_policy_acts(tmp_path, x64):
    flags = "--algo a2c --env Pendulum-v1 --total-steps 64 --num-envs 2 --num-steps 16 --hidden-sizes 8 --quiet"
    assert main([*flags.split(), "--final-episodes", "1", "--out", str(tmp_path / "run")]) == 0
    action = load(tmp_path / "run").act(np.zeros(3), jax.random.key(0))
    assert (action.dtype, action.shape) == (jnp.float32, (1,))
