"""Kernels of our own, interpreted on a CPU, against the same operations as XLA compiles them."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Position, Walk
from jax.flatten_util import ravel_pytree
from support import largest_difference, level_1_jit, quick_jit

from purejaxppo.advantages import standardize_advantages
from purejaxppo.agent import Agent
from purejaxppo.algorithms import A2C, NPG, PPO, TRPO, A2CTrustRegion, PPOPenalty
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.kernels.choice import noted
from purejaxppo.kernels.loops import scan_in_kernel
from purejaxppo.kernels.memory import interpreted
from purejaxppo.kernels.padding import NoKernelError, padded_shape, traced
from purejaxppo.optimize.fisher import fisher_by_kernel, fisher_vector_product
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.parallel.runs import over_runs
from purejaxppo.platforms import compiling_for, target_platform
from purejaxppo.rollout import rollout
from purejaxppo.spaces import Box, MultiBinary
from purejaxppo.train import init, update_step
from purejaxppo.types import Batch, traits_of

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 64, "hidden_sizes": (8,), "num_minibatches": 2, "num_epochs": 2}
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
ROW, COLUMN = X[:1], X[:, :1]


class Masked(Walk):
    """A walk without noise, whose observation is a dictionary; every third step allows one action alone."""

    @property
    def observation_space(self):
        return {"x": Box(-jnp.inf, jnp.inf, (2,)), "action_mask": MultiBinary(2)}

    def observe(self, state):
        return {"x": super().observe(state), "action_mask": jnp.stack([state.steps % 3 != 0, state.steps >= 0])}

    def step(self, key, state, action):
        state = Position(state.x + 0.4 * action - 0.2, state.steps + 1)
        terminated = jnp.abs(state.x) > 1.0
        return state, self.observe(state), state.x, terminated, (state.steps >= self.limit) & ~terminated


OPERATIONS = {  # each looks along an axis that is padded, but for the last few
    "sum": (lambda x: jnp.sum(x, axis=1), X),
    "sum of all": (jnp.sum, X),
    "greatest": (lambda x: jnp.max(x, axis=0), X),
    "least": (lambda x: jnp.min(x, axis=0), X),
    "argmax": (lambda x: jnp.argmax(x, axis=1), X),
    "any": (lambda x: jnp.any(x > 1.0, axis=1), X),
    "all": (lambda x: jnp.all(x > -1.0, axis=0), X),
    "log-softmax": (jax.nn.log_softmax, X),
    "product": (lambda x, y: x @ y, X, Y),
    "product, transposed": (lambda x, y: jax.lax.dot_general(x, y, (((0,), (1,)), ((), ()))), X, X.T),
    "product of a row": (lambda x, y: x @ y, ROW, Y),
    "product of a column": (lambda x, y: x @ y, COLUMN, ROW),
    "product with a column": (lambda x, y: x @ y, X, Y[:, :1]),
    "one-hot": (lambda x: jax.nn.one_hot(jnp.argmax(x, axis=1), 3), X),
    "looked up": (lambda x: jnp.array([1.0, -2.0, 5.0]).at[jnp.argmax(x, axis=1)].get(mode="clip"), X),
    "looked up, bool": (lambda x: ~jnp.array([True, False, True]).at[jnp.argmax(x, axis=1)].get(mode="clip"), X),
    "looked up, bytes": (lambda x: jnp.array([1, -2, 5], jnp.int8).at[jnp.argmax(x, axis=1)].get(mode="clip"), X),
    "argmax of bool": (lambda x: jnp.argmax(x > 0.0, axis=1), X),
    "column taken": (lambda x: x[:, 1] * 2.0, X),
    "first columns": (lambda x: jnp.sum(x[:, :2], axis=1), X),
    "columns joined": (lambda x: jnp.stack([x[:, 2], x[:, 0]], axis=-1), X),
    "gradient": (jax.grad(lambda x: jnp.sum(jnp.tanh(x @ Y)[:, 1] ** 3)), X),
    "elementwise": (lambda x: jnp.where(x > 0, jnp.sqrt(jnp.abs(x)), jnp.clip(x, -0.5, 0.5)), X),
    "transposed": (lambda x: x.T + 1.0, X),
    "new axis": (lambda x: x[:, None, :], X),
}


def pad(x):
    """As a kernel holds it, with NaN, or 1, for what must not be looked at."""
    held = np.full(padded_shape(x.shape), np.nan if x.dtype.kind == "f" else 1, x.dtype)
    held[tuple(map(slice, x.shape))] = x
    return held


def test_operations_leave_padding_out():
    """Each operation on padded arrays gives what it gives on the arrays themselves, whatever the padding is."""

    @quick_jit
    def both():
        results = {}
        for name, (fn, *args) in OPERATIONS.items():
            on_padded = traced(fn, *args)
            (actual,) = on_padded([pad(x) for x in map(np.asarray, on_padded.consts)], *map(pad, args))
            results[name] = fn(*args), actual
        return results

    for name, (expected, actual) in both().items():
        assert actual.shape == padded_shape(expected.shape), name
        inside = actual[tuple(map(slice, expected.shape))]
        np.testing.assert_allclose(inside, expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (jnp.sort, "sort"),
        (lambda x: x.reshape(3, 5), "reshapes"),
        (lambda x: x[:, 1:], "takes"),
        (lambda x: x[:, ::2], "takes every 2th"),
        (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 1, 0))), "puts"),
        (lambda x: x.astype(int) @ x.T.astype(int), "multiplies matrices of int32"),
        (lambda x: jnp.bitwise_or.reduce(x.astype(int), axis=1), "joins the bits of int32"),
        (lambda x: jnp.concatenate([x, x]), "concatenates"),
        (lambda x: x[:1, :1] + jnp.sum(jnp.zeros((200, 200)) * x[0, 0]), "does not fit"),
    ],
)
def test_what_no_kernel_can_do_is_named(fn, what):
    with pytest.raises(NoKernelError, match=what):
        jax.eval_shape(lambda: traced(fn, X)([], pad(X)))


def walk(carry, x):
    """Something with a matrix product, a closed-over array, a scalar, a bool and chance."""
    position, count = carry
    noise, key = x
    noise = noise + jax.random.normal(key, noise.shape)
    position = jnp.tanh(position @ jnp.asarray(Y[:, :3]) + noise)
    done = position[:, 0] > 0.5
    return (jnp.where(done[:, None], 0.0, position), count + jnp.sum(done)), (position, done, count)


def test_scan_in_kernel_is_a_scan():
    noise = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))

    def run(scan, noise):
        return scan(walk, (jnp.asarray(X), jnp.zeros((), jnp.int32)), (noise, jax.random.split(jax.random.key(1), 7)))

    expected = quick_jit(jax.vmap(lambda noise: run(jax.lax.scan, noise)))(noise)
    with interpreted():
        actual = quick_jit(jax.vmap(lambda noise: run(scan_in_kernel, noise)))(noise)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), actual) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert int(expected[0][1].sum()) > 0
    assert largest_difference(actual, expected) < 1e-6


def test_kernels_have_no_derivative_and_say_so():
    def last(x):
        return scan_in_kernel(lambda carry, y: (carry * y, None), x, jnp.ones(3))[0]

    with pytest.raises(UsageError, match=r"no derivatives; to differentiate training, pass 'xla'\."):
        jax.eval_shape(jax.grad(last), 1.0)


@pytest.mark.parametrize("size", [pytest.param(12, marks=pytest.mark.slow), 400], ids=["whole", "in parts"])
def test_minimize_in_kernel_is_minimize(size):
    """A linear fit of two minibatches per epoch, with a stop and prepared samples; the stop holds all later steps."""
    x, noise = jax.random.normal(jax.random.key(0), (size, 3)), jax.random.normal(jax.random.key(1), (size,))
    batch = Batch(x, (), x[:, 0], (), (), noise, jnp.sum(x, axis=1))
    params = {"w": jnp.zeros((3, 1)), "b": jnp.zeros((1, 1))}

    def loss(params, batch):
        error = (batch.obs @ params["w"] + params["b"])[:, 0] - batch.value_target - 0.1 * batch.advantage
        return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}

    def fit(kernels, rate):
        adam = MinibatchAdam(rate, 0.5, 3, 2, kernels)
        return adam.minimize(
            jax.random.key(2),
            loss,
            params,
            adam.init(params),
            batch,
            stop=lambda metrics: metrics["error"] < 1.3,
            prepare=standardize_advantages,
            by_sample=True,
        )

    rates = jnp.array([0.01, 0.1])
    expected = quick_jit(jax.vmap(lambda rate: fit("xla", rate)))(rates)
    with interpreted():
        actual = quick_jit(jax.vmap(lambda rate: fit("pallas", rate)))(rates)
    assert largest_difference(actual, expected) < 2e-6
    assert [int(n) for n in expected[1].count] != [6, 6]  # the stop came into play


def test_a_loss_that_is_no_mean_over_samples_is_not_worked_on_in_parts():
    """As one that standardises advantages over its minibatch: by XLA, but where the minibatch is one part."""

    def loss(params, x):
        value = jnp.std(x * params)
        return value, {"policy_loss": value}

    def fit(kernels, size):
        adam, x, start = MinibatchAdam(0.1, 0.5, 1, 1, kernels), jnp.arange(float(size)) % 7, jnp.ones(1)
        return adam.minimize(jax.random.key(0), loss, start, adam.init(start), x)[0]

    for size, kernel in ((64, True), (256, False)):
        with interpreted(), noted() as notes:
            found = quick_jit(lambda size=size: fit("auto", size))()
        [note] = notes
        assert (note.removeprefix("Adam's minibatches: ") == "one kernel") == kernel
        np.testing.assert_allclose(found, fit("xla", size), rtol=1e-6)


def test_fisher_by_kernel_is_the_fisher_product():
    """Of 200 observations, in two parts; two policies."""
    config = Config(env="CartPole-v1", hidden_sizes=(8,))
    policy = Agent.of(config).policy.apply
    obs, v = jax.random.normal(jax.random.key(0), (200, 4)), jax.random.normal(jax.random.key(1), (58,))
    states = quick_jit(jax.vmap(lambda key: init(config, key)))(jax.random.split(jax.random.key(2), 2))

    def by_xla(params):
        theta, unravel = ravel_pytree(params)
        return fisher_vector_product(lambda theta: policy(unravel(theta), obs), theta, 0.1)(v)

    expected = quick_jit(jax.vmap(by_xla))(states.policy)
    with interpreted():
        actual = quick_jit(jax.vmap(lambda params: fisher_by_kernel(policy, params, obs, 0.1)(v)))(states.policy)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def kernels_in(fn, config):
    """How many kernels of ours a function of a config and a state has; made for a GPU, they are Triton's language."""
    state = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    traced = jax.jit(lambda state: fn(config, state)).trace(state)
    return traced.lower(lowering_platforms=(target_platform(),)).as_text().count("xla.gpu.triton")


def play(config, state):
    agent = Agent.of(config)
    return rollout(state.key, agent.env, agent.make_policy(state), state.rollout, config.num_steps, config.kernels)


@pytest.mark.thorough
def test_auto_takes_kernels_on_gpus_alone():
    config = Config(env="CartPole-v1", **SMALL)
    assert kernels_in(play, config) == 0
    with compiling_for("cuda"), noted() as notes:
        assert kernels_in(play, config.replace(kernels="xla")) == 0
        assert not notes
        assert kernels_in(update_step, config) == 3  # rollout, policy, critic
    assert notes == ["the rollout: one kernel", "Adam's minibatches: one kernel"]
    with compiling_for("cuda"), noted() as notes:
        assert kernels_in(update_step, config.replace(precision="highest")) == 0
    assert notes[0].startswith("the rollout: XLA, not one kernel: its products would take longer")


def test_runs_that_are_spread_over_devices_have_kernels():
    """As `over_runs` places them, whose mesh shows in the shapes of what a step closes over."""
    config = Config(env="CartPole-v1", **SMALL)
    with interpreted(), noted() as notes:
        spread = over_runs(lambda key: update_step(config, init(config, key)), jax.devices()[:1])
        jax.eval_shape(spread, jax.random.split(jax.random.key(0), 2))
    assert notes == ["the rollout: one kernel", "Adam's minibatches: one kernel"]


def test_auto_goes_on_without_kernels():

    class Continued(Walk):
        def restart(self, key, state):
            return state, self.observe(state)

    with compiling_for("cuda"), noted() as notes:
        assert kernels_in(play, Config(env=Continued(), **SMALL)) == 0
    assert len(notes) == 1
    assert notes[0].startswith("the rollout: XLA, not one kernel: an episode's start ")


def test_pallas_is_refused_where_it_cannot_be():
    config = Config(env="CartPole-v1", kernels="pallas", hidden_sizes=(256, 256), num_steps=16)
    with pytest.raises(UsageError, match=r"kernels = 'pallas' is for NVIDIA GPUs, .* a cpu; leave it at auto\.$"):
        config.check()
    with compiling_for("cuda"):
        config.check()
        with pytest.raises(UsageError, match=r"the rollout: a step reads .* parameters, more .*; leave it") as error:
            kernels_in(play, config)
    assert str(error.value).splitlines()[0].endswith("leave it at auto.")


COMPILED = [  # beside each rollout, the two fits of it
    ("CartPole-v1", PPO(), {}),
    ("CartPole-v1", PPO(), {"precision": "highest"}),
    ("Pendulum-v1", PPO(target_kl=0.02), {"joint_update": True, "normalize_observations": True}),
    ("Acrobot-v1", PPOPenalty(), {"num_steps": 128, "num_minibatches": 3, "num_envs": 6}),
    ("MountainCar-v0", TRPO(), {"num_steps": 256}),
    ("MountainCarContinuous-v0", A2C(), {"action_distribution": "tanh-gaussian", "num_envs": 16}),
]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs jax-cuda12-plugin, but no GPU")
@pytest.mark.parametrize("chip_name", ["h100", "h200"])
def test_kernels_compile_for_chips_that_are_not_there(chip_name, monkeypatch):
    """Six programs, in each of which the kernels are single launches: Triton and ptxas take what is asked of them."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "benchmarks" / "peers")
    chip = importlib.import_module("chip")
    (device,) = chip.devices(chip_name)
    one = jax.sharding.SingleDeviceSharding(device)
    for env, algo, settings in COMPILED:
        config = Config(env=env, algo=algo, **settings)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
        with compiling_for("cuda"), noted() as notes:
            config = config.replace(kernels="pallas")
            states = jax.eval_shape(jax.vmap(lambda key, config=config: init(config, key)), keys)
            states = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), states)
            update = jax.jit(jax.vmap(lambda state, config=config: update_step(config, state)))
            text = update.lower(states).compile().as_text()
        others = 1 if config.is_joint else 2  # TRPO: the Fisher product, and the critic's fit
        assert text.count("xla.gpu.triton") == 1 + others, (env, notes)


# What follows compiles for half a minute a case: interpreted, every operation of a kernel is one of XLA's.


def both_ways(fn, *args):
    """What `fn(kernels, *args)` gives by XLA, and by interpreted kernels."""
    expected = level_1_jit(jax.vmap(lambda *args: fn("xla", *args)))(*args)
    with interpreted():
        return expected, level_1_jit(jax.vmap(lambda *args: fn("pallas", *args)))(*args)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"num_envs": 20, "normalize_observations": True, "layer_norm": True}),
        ("MountainCar-v0", {"num_envs": 1, "activation": "swish"}),
        ("Pendulum-v1", {"num_envs": 3}),
        ("MountainCarContinuous-v0", {"action_distribution": "tanh-gaussian", "activation": "relu"}),
        ("Acrobot-v1", {}),  # draws random numbers as it steps
        (Walk(continuous=True), {}),  # so does this one
        (Masked(), {}),
    ],
)
def test_rollouts_are_equal(env, settings):
    """1,000 steps of three random policies: the same discrete actions and episode ends, other numbers to rounding."""
    config = Config(env=env, num_steps=1000, **{"hidden_sizes": (16, 16), **settings})
    keys = jax.random.split(jax.random.key(3), 3)
    states = quick_jit(jax.vmap(lambda key: init(config, key)))(keys)

    expected, actual = both_ways(lambda kernels, state: play(config.replace(kernels=kernels), state), states)
    ends = expected[1].terminated | expected[1].truncated
    assert int(ends.sum()) >= 3
    for name in ("terminated", "truncated"):
        np.testing.assert_array_equal(getattr(actual[1], name), getattr(expected[1], name))
    if jnp.issubdtype(expected[1].action.dtype, jnp.integer):
        np.testing.assert_array_equal(actual[1].action, expected[1].action)
    alike = 200 if env == "Acrobot-v1" else 1000  # in that chaotic one, rounding then shows
    first = jax.tree.map(lambda x: np.asarray(x[:, :alike], np.float64), (actual[1], expected[1]))
    for x, y in zip(*map(jax.tree.leaves, first), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


UPDATES = {
    "ppo": ("CartPole-v1", PPO(), {}),
    "ppo, dual clip, early stop": ("Pendulum-v1", PPO(dual_clip=1.5, target_kl=2e-4), {"learning_rate": 3e-3}),
    "ppo, joint": ("CartPole-v1", PPO(), {"joint_update": True}),
    "ppo, shared torso, parts": ("CartPole-v1", PPO(), {"shared_torso": True, "num_steps": 300, "num_minibatches": 2}),
    "ppo, masks": (Masked(), PPO(normalize_advantages="none"), {}),
    "ppo-penalty": ("CartPole-v1", PPOPenalty(), {"num_steps": 96, "num_minibatches": 3}),
    "a2c": ("MountainCar-v0", A2C(), {"num_minibatches": 1, "num_epochs": 1}),
    "a2c-tr, parts": ("CartPole-v1", A2CTrustRegion(), {"num_steps": 66, "num_minibatches": 1, "num_epochs": 1}),
    "npg": ("Pendulum-v1", NPG(), {}),
    "trpo": ("CartPole-v1", TRPO(), {"max_grad_norm": float("inf")}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("env", "algo", "settings"), UPDATES.values(), ids=UPDATES.keys())
def test_updates_agree(env, algo, settings):
    """The first minibatch to 1e-6, a whole update to 1e-4, relative to each array's largest entry; three seeds."""
    usual = {"hidden_sizes": (16, 16), "num_envs": 4, "num_steps": 64, "num_minibatches": 4, "num_epochs": 3}
    whole = Config(env=env, algo=algo, **usual | settings)
    size = whole.num_envs * whole.num_steps // whole.num_minibatches
    one = whole.replace(num_epochs=1, num_minibatches=1, num_envs=1, num_steps=size)  # of as many samples, all of them
    # one step of TRPO is a dozen products and a search, not one gradient
    first = 1e-5 if isinstance(algo, A2CTrustRegion) else 1e-6  # some of its gradients are as small as Adam's ε
    for config, bound in [(one, first), (whole, 1e-4)][not traits_of(algo).first_order :]:
        states = quick_jit(jax.vmap(lambda key, config=config: init(config, key)))(
            jax.random.split(jax.random.key(4), 3)
        )
        expected, actual = both_ways(
            lambda kernels, state, config=config: update_step(config.replace(kernels=kernels), state)[0], states
        )
        for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            if not jnp.issubdtype(y.dtype, jax.dtypes.prng_key):
                got, wanted = (np.asarray(a, np.float64) for a in (x, y))
                largest = max(np.abs(wanted).max(initial=0.0), 1e-3)
                np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * largest)
