"""Float32 everywhere, with `jax_enable_x64`, too; and matrix products as exact as a run's `precision` says."""

import re
from collections import Counter

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from support import by_cost

from purejaxppo import NPG, TRPO, Config, init, load, make_train, preset, update_step
from purejaxppo.cli.run import main
from purejaxppo.policy.acting import stepper
from purejaxppo.policy.frames import player
from purejaxppo.presets import PRESETS

OURS = [case for case in PRESETS if "/" not in case[1]]  # those of no extra
MINATAR = [case for case in OURS if case[1].endswith("-MinAtar")]  # of equal settings
SMALL = [case for case in OURS if case[1] in ("CartPole-v1", "Pendulum-v1")]
QUICK = (("ppo", "CartPole-v1"), ("trpo", "Pendulum-v1"))


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
    ("algo", "env"),
    by_cost([*(case for case in OURS if case not in MINATAR), ("ppo", "Breakout-MinAtar")], QUICK, SMALL),
)
def test_every_preset_is_the_same_program(algo, env):
    config = preset(algo, env)
    expected = program(config)
    with jax.enable_x64(True):
        assert program(config) == expected


@pytest.mark.parametrize(("algo", "env"), [("ppo", "Freeway-MinAtar")])
@pytest.mark.thorough
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


@pytest.mark.thorough
def test_the_command_trains_and_the_policy_acts(tmp_path, x64):
    flags = "--algo a2c --env Pendulum-v1 --total-steps 64 --num-envs 2 --num-steps 16 --hidden-sizes 8 --quiet"
    assert main([*flags.split(), "--final-episodes", "1", "--out", str(tmp_path / "run")]) == 0
    trained = load(tmp_path / "run")
    action = trained.act(np.zeros(3), jax.random.key(0))
    assert (action.dtype, action.shape) == (jnp.float32, (1,))
    filmed = player(trained.config, 3)(trained.state, jax.random.key(0)).totals
    with jax.enable_x64(False):
        np.testing.assert_array_equal(filmed, player(trained.config, 3)(trained.state, jax.random.key(0)).totals)


def products(config, function=update_step):
    """How often each precision is asked for in an update, or another `function` of config and state.

    Of products with a matrix, and of those of two vectors.
    """
    found = Counter()

    def look_into(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                vectors = all(x.aval.ndim == 1 for x in equation.invars)
                precision = equation.params["precision"]
                found["vectors" if vectors else "matrices", precision and precision[0]] += 1
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                look_into(inner)

    state = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    look_into(jax.make_jaxpr(lambda state: function(config, state))(state).jaxpr)
    return found


@pytest.mark.thorough
def test_precision_is_that_of_all_matrix_products():
    """`step_precision` is that of what makes the step; products of conjugate gradient's vectors are always exact."""
    exact, rough = jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH
    assert set(products(Config())) == {("matrices", None)}
    assert set(products(Config(precision="highest"))) == {("matrices", exact)}
    assert set(products(Config(algo=TRPO()))) == {("matrices", None), ("vectors", exact)}
    assert set(products(Config(algo=TRPO(), precision="high"))) == {("matrices", rough), ("vectors", exact)}
    acts = products(Config(precision="high"), lambda config, state: stepper(config, state)(state.rollout.obs))
    assert set(acts) == {("matrices", rough)}
    for algo in (TRPO(step_precision="highest"), NPG(step_precision="highest")):
        mixed = products(Config(algo=algo))
        assert mixed["vectors", exact] > 0
        assert mixed["matrices", exact] > mixed["matrices", None] > 0
