"""Settings that other libraries' configurations need: each against its own formula, in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from environments import Walk

from purejaxppo import PPO, TRPO, Config, init
from purejaxppo.agent import Agent
from purejaxppo.errors import UsageError
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.optimizers import with_moments_of

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 64, "hidden_sizes": (8,), "num_minibatches": 1}
KEY = jax.random.key(0)


def quadratic(params, batch):
    """A loss whose gradient is w - x."""
    return 0.5 * jnp.sum((params["w"] - batch[0]) ** 2), {}


def minimized(optimizer, steps, **numbers):
    start = {"w": jnp.asarray([1.0, -2.0, 3.0])}
    moments = with_moments_of(optimizer, MinibatchAdam.init(start), start)
    adam = MinibatchAdam(0.05, jnp.inf, steps, 1, "xla", **numbers)
    params, moments, _ = adam.minimize(KEY, quadratic, start, moments, jnp.asarray([[0.5, 0.5, 0.5]]))
    return params["w"], moments


def test_rmsprop_in_float64():
    """PyTorch's, which Stable-Baselines3's A2C uses: v begins at 0, ε is outside of the root."""
    w, v = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for _ in range(7):
        g = w - 0.5
        v = 0.99 * v + 0.01 * g**2
        w = w - 0.05 * g / (np.sqrt(v) + 1e-3)
    found, moments = minimized("rmsprop", 7, eps=1e-3)
    np.testing.assert_allclose(found, w, rtol=1e-6)
    np.testing.assert_allclose(moments.state.nu["w"], v, rtol=1e-6)


def test_an_optimizer_of_ones_own_is_given_rate_gradient_and_parameters():
    """AdamW by optax is ours; and Lion's step by its formula (Chen et al., 2023, arXiv:2302.06675, algorithm 2)."""
    adamw = partial(optax.adamw, eps=1e-8, weight_decay=0.1)
    ours, _ = minimized("adam", 7, eps=1e-8, weight_decay=0.1)
    np.testing.assert_allclose(minimized(adamw, 7, own=adamw)[0], ours, rtol=1e-5)
    w, m = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for _ in range(7):
        g = w - 0.5
        w, m = w - 0.05 * np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g
    lion = partial(optax.lion, weight_decay=0.0)
    found, moments = minimized(lion, 7, own=lion)
    np.testing.assert_allclose(found, w, rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(moments.state, "mu")["w"], m, rtol=1e-5)


def test_adam_with_weight_decay_is_adamw():
    w, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t in range(1, 8):
        g = w - 0.5
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.05 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * w)
    found, _ = minimized("adam", 7, eps=1e-8, weight_decay=0.1)
    np.testing.assert_allclose(found, w, rtol=1e-5)
    params, tx = {"w": jnp.asarray([1.0, -2.0, 3.0])}, optax.adamw(0.05, eps=1e-8, weight_decay=0.1)
    state = tx.init(params)
    for _ in range(7):
        step, state = tx.update({"w": params["w"] - 0.5}, state, params)
        params = optax.apply_updates(params, step)
    np.testing.assert_allclose(found, params["w"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "tanh-gaussian", "gaussian-state-std", "tanh-gaussian-state-std"])
def test_log_std_init(kind):
    """log σ before training; the means do not change."""
    env = Walk(continuous=True)
    base = Config(env=env, algo=PPO(), action_distribution=kind, **SMALL)
    states = [init(base.replace(log_std_init=x), KEY) for x in (0.0, -1.5)]
    obs = states[0].rollout.obs
    before, after = (Agent.of(base).make_policy(state)(obs)[0] for state in states)
    np.testing.assert_allclose(after.log_std, before.log_std - 1.5, rtol=1e-6)
    np.testing.assert_array_equal(after.mean, before.mean)
    assert np.ptp(before.log_std) == 0 or kind.endswith("state-std")


def test_a_sigma_that_depends_on_the_state():
    env = Walk(continuous=True)
    config = Config(env=env, algo=TRPO(), action_distribution="tanh-gaussian-state-std", **SMALL)
    state = init(config, KEY)
    policy = Agent.of(config).make_policy(state)(state.rollout.obs * 100.0 + jnp.arange(2.0)[:, None])[0]
    assert type(policy).__name__ == "TanhGaussian"
    assert np.ptp(policy.log_std) > 0


def kernels(config):
    return {
        "/".join(str(k.key) for k in path): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(init(config, KEY).policy["params"])
    }


def test_initializations():
    """Of 100 inputs: U(±√(3/100)) and zero biases as brax has it, U(±1/√100) for both as PyTorch."""
    base = Config(env=Walk(), algo=PPO(), **SMALL | {"hidden_sizes": (100, 90)})
    for name, bound, bias in (("lecun-uniform", 0.03**0.5, 0.0), ("pytorch", 0.1, 0.1)):
        found = kernels(base.replace(initialization=name))
        kernel, biases = found["Torso_0/Dense_1/kernel"], found["Torso_0/Dense_1/bias"]
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert 0.9 * bias <= np.abs(biases).max() <= bias
        assert np.abs(found["Dense_0/kernel"]).max() > 0.05  # the last layer, too


def test_the_critics_own_layers():
    config = Config(env=Walk(), algo=PPO(), critic_hidden_sizes=[5, 4], **SMALL)
    critic = init(config, KEY).critic["params"]["Torso_0"]
    assert [critic[f"Dense_{i}"]["kernel"].shape[1] for i in range(2)] == [5, 4]
    assert init(config, KEY).policy["params"]["Torso_0"]["Dense_0"]["kernel"].shape[1] == 8
    assert config.replace(hidden_sizes=(3,)).critic_hidden_sizes == (5, 4)


def test_minibatch_size_decides_num_minibatches():
    config = Config(env=Walk(), algo=PPO(), minibatch_size=8, num_envs=2, num_steps=16)
    assert config.num_minibatches == 4
    assert config.replace(num_steps=32).num_minibatches == 8
    config.check()


CONTINUOUS = {"env": Walk(continuous=True), "action_distribution": "gaussian-state-std"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minibatch_size": 5}, "minibatch_size = 5 does not divide num_envs × num_steps = 32"),
        ({"log_std_init": -1.0}, "is for Gaussian policies over Box actions"),
        (CONTINUOUS | {"log_std_init": -7.0}, r"= -7.0 must be in \(-5, 2\), within which gaussian-state-std"),
        ({"critic_hidden_sizes": (4,), "shared_torso": True}, "the critic shares the policy's layers"),
        ({"optimizer": "sgd"}, "is not one of: adam, rmsprop"),
        ({"optimizer": optax.lion(1e-3)}, "a function of the learning rate that makes one of optax's"),
        ({"optimizer": lambda rate: rate}, "which has no init and update"),
        ({"optimizer": optax.lion, "weight_decay": 0.1}, "weight_decay = 0.1 would do nothing"),
        ({"optimizer": optax.lion, "optimizer_eps": 0.1}, "optimizer_eps = 0.1 would do nothing"),
        ({"activation": "mish"}, "is not one of"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Config(**{"env": Walk(), "algo": PPO()} | SMALL | settings).check()
