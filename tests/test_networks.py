"""Initialisation, the convolution and the independence of the two networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import linen as nn
from support import quick_jit

import purejaxppo
from purejaxppo.distributions import DiagonalGaussian
from purejaxppo.networks.heads import PolicyNetwork, ValueNetwork
from purejaxppo.networks.torso import Torso, orthogonal, orthogonalize, tanh
from purejaxppo.spaces import Box, Discrete

VECTOR = Box(-np.inf, np.inf, (4,))
SHAPES = [(20, 6), (6, 20), (12, 12), (1, 7), (7, 1), (1, 1)]


def leaves(params):
    return jax.tree_util.tree_leaves_with_path(params)


def random_params(network, obs):
    """Parameters of the network's shapes, all of them normal: biases and log σ, too."""
    rng, shapes = np.random.default_rng(0), nn.unbox(jax.eval_shape(network.init, jax.random.key(0), obs))
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes)


def initial(network, obs):
    key, kernel_key = jax.random.split(jax.random.key(1))
    return quick_jit(lambda: orthogonalize(kernel_key, network.init(key, obs)))()


def test_derivatives_of_tanh_are_those_in_float64_and_a_tangent_costs_one_product():
    """y' = 1/cosh² x, forward and in reverse; y'' = -2 y y'; where it saturates, too. Once linearised, one product."""
    x = np.concatenate([np.linspace(-9, 9, 1001), [0.0, 1e-4, 30.0, -200.0]])
    with np.errstate(over="ignore"):
        slope = 1 / np.cosh(x) ** 2
    at = jnp.asarray(x, jnp.float32)
    _, forward = jax.jvp(tanh, (at,), (jnp.ones_like(at),))
    reverse = jax.vmap(jax.grad(tanh))(at)
    for found in (forward, reverse):
        np.testing.assert_allclose(found, slope, rtol=2e-5, atol=1e-6)  # y itself is right to some 3e-7
    second = jax.vmap(jax.grad(jax.grad(tanh)))(at)
    np.testing.assert_allclose(second, -2 * np.tanh(x) * slope, rtol=2e-5, atol=2e-6)
    product = jax.make_jaxpr(jax.linearize(tanh, at)[1])(at)
    assert [equation.primitive.name for equation in product.eqns] == ["mul"]


@functools.cache
def orthogonal_matrix(shape):
    """Drawn with gain 3 from the key 1."""
    return np.asarray(orthogonalize(jax.random.key(1), orthogonal(3.0)(None, shape)), np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_has_orthonormal_rows_or_columns_times_gain(shape):
    W = orthogonal_matrix(shape)
    assert W.shape == shape
    gram = W @ W.T if shape[0] <= shape[1] else W.T @ W
    np.testing.assert_allclose(gram, 3.0**2 * np.eye(min(shape)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_is_the_q_of_a_qr_decomposition_with_positive_diagonal(shape):
    small, large = min(shape), max(shape)
    gaussian = np.asarray(jax.random.normal(jax.random.key(1), (small * large,)), np.float64).reshape(small, large)
    Q, R = np.linalg.qr(gaussian.T)
    expected = 3.0 * Q * np.sign(np.diag(R))  # [large, small]
    np.testing.assert_allclose(orthogonal_matrix(shape), expected if shape[0] > shape[1] else expected.T, atol=3e-4)


def test_orthogonal_matrices_are_spread_evenly_and_differ_between_keys():
    """Haar measure: entries of n×n matrices have mean 0, variance 1/n, fourth moment 3/(n(n+2))."""
    n = 4
    W = np.asarray(
        quick_jit(jax.vmap(lambda key: orthogonalize(key, orthogonal(1.0)(None, (n, n)))))(
            jax.random.split(jax.random.key(2), 5000)
        )
    )
    np.testing.assert_allclose(W.mean(0), 0.0, atol=0.04)
    np.testing.assert_allclose((W**2).mean(0), 1 / n, atol=0.02)
    np.testing.assert_allclose((W**4).mean(0), 3 / (n * (n + 2)), atol=0.02)
    assert abs((np.linalg.det(W) > 0).mean() - 0.5) < 0.04


def test_kernels_made_together_are_orthonormal_each_and_independent():
    """Of one length and of another, wide and tall, with gains of their own; all that is no such kernel stays."""
    kernels = {"a": (6, 20), "b": (20, 6), "c": (20, 20), "d": (20, 1), "e": (6, 6), "f": (20, 6)}
    gains = dict(zip(kernels, (1.0, 2.0, 0.5, 0.01, 3.0, 2.0), strict=True))
    params = {"bias": jnp.full(3, 7.0)} | {name: orthogonal(gains[name])(None, kernels[name]) for name in kernels}
    filled = quick_jit(orthogonalize)(jax.random.key(4), params)
    np.testing.assert_array_equal(filled.pop("bias"), 7.0)
    for name, W in jax.tree.map(lambda x: np.asarray(x, np.float64), filled).items():
        assert W.shape == kernels[name]
        gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
        np.testing.assert_allclose(gram / gains[name] ** 2, np.eye(min(W.shape)), atol=1e-5)
    assert np.abs(filled["b"] - filled["f"]).max() > 0.5
    many = quick_jit(jax.vmap(lambda key: orthogonalize(key, params)))(jax.random.split(jax.random.key(5), 2000))
    entries = [(np.asarray(many[name]) / gains[name]).reshape(2000, -1)[:, :6] for name in kernels]
    correlation = np.corrcoef(np.concatenate(entries, axis=1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.12  # of 2,000: a standard deviation is 0.022


def test_the_convolution_is_a_direct_one():
    """16 filters, 3×3, stride 1, no padding, ReLU, over images [H, W, C]."""
    obs = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    torso = Torso(Box(-np.inf, np.inf, (7, 6, 3)), hidden_sizes=(), activation="tanh")
    params = random_params(torso, obs)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"]["Dense_0"])
    kernel = weights["kernel"].reshape(3, 3, 3, 16)

    expected = np.zeros((2, 5, 4, 16)) + weights["bias"]
    for n, channel, out in np.ndindex(2, 3, 16):
        expected[n, :, :, out] += scipy.signal.correlate2d(
            np.asarray(obs[n, :, :, channel], np.float64), kernel[:, :, channel, out], mode="valid"
        )
    features = torso.apply(params, obs)
    assert features.shape == (2, 5 * 4 * 16)
    np.testing.assert_allclose(features, np.maximum(expected, 0.0).reshape(2, -1), atol=1e-5)


def test_without_convolutions_images_are_flattened():
    obs = jax.random.bernoulli(jax.random.key(0), 0.5, (2, 7, 6, 3))
    torso = Torso(Box(0, 1, (7, 6, 3)), hidden_sizes=(), activation="tanh", convolutions=False)
    np.testing.assert_array_equal(torso.apply({}, obs), np.asarray(obs, np.float32).reshape(2, -1))


@pytest.mark.parametrize("activation", ["tanh", "relu", "swish"])
def test_the_torso_is_a_multilayer_perceptron(activation):
    functions = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "swish": lambda x: x / (1 + np.exp(-x))}
    obs = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    torso = Torso(VECTOR, (6, 3), activation)
    params = random_params(torso, obs)
    x = obs.astype(np.float64)
    for layer in ("Dense_0", "Dense_1"):
        weights = params["params"][layer]
        x = functions[activation](x @ np.asarray(weights["kernel"], np.float64) + np.asarray(weights["bias"]))
    np.testing.assert_allclose(torso.apply(params, obs), x, atol=1e-5)


@pytest.mark.parametrize("obs_shape", [(), (4,), (5, 6, 2)])
def test_networks_map_any_batch_of_observations_of_any_rank(obs_shape):
    """Each observation of a batch gets what it gets alone."""
    obs = np.random.default_rng(2).standard_normal((2, 3, *obs_shape)).astype(np.float32)
    space = Box(-np.inf, np.inf, obs_shape)
    policy, critic = PolicyNetwork(space, (5,), "tanh", action_space=Discrete(3)), ValueNetwork(space, (5,), "tanh")
    params = random_params(policy, obs)
    logits = quick_jit(lambda obs: policy.apply(params, obs).logits)
    assert logits(obs).shape == (2, 3, 3)
    np.testing.assert_allclose(logits(obs[1, 2]), logits(obs)[1, 2], atol=1e-5)
    assert jax.eval_shape(critic.apply, random_params(critic, obs), obs).shape == (2, 3)
    assert jax.eval_shape(critic.apply, random_params(critic, obs), obs[0, 0]).shape == ()


def test_observations_may_be_integers_or_booleans():
    network = PolicyNetwork(Box(0, 255, (4, 4, 2)), (5,), "relu", action_space=Discrete(2))
    obs = np.arange(2 * 4 * 4 * 2).reshape(2, 4, 4, 2) % 3 == 0
    params = random_params(network, obs)
    expected = network.apply(params, jnp.asarray(obs, jnp.float32)).logits
    np.testing.assert_array_equal(network.apply(params, jnp.asarray(obs)).logits, expected)
    scaled = network.apply(params, 255 * jnp.asarray(obs, jnp.uint8)).logits  # bytes are divided by 255
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_actions_of_any_shape_are_flattened():
    network = PolicyNetwork(VECTOR, (5,), "tanh", action_space=Box(-1.0, 1.0, (2, 3)))
    obs = jnp.ones((7, 4))
    distribution = jax.eval_shape(network.apply, random_params(network, obs), obs)
    assert distribution.mean.shape == distribution.log_std.shape == (7, 6)


def test_an_initial_categorical_policy_is_nearly_uniform_everywhere():
    """The last layer's gain is 0.01 and 64 units lie in [-1, 1], so no logit exceeds 0.08."""
    network = PolicyNetwork(VECTOR, (64, 64), "tanh", action_space=Discrete(6))
    obs = 100.0 * jax.random.normal(jax.random.key(0), (500, 4))
    params = initial(network, obs)
    logits = network.apply(params, obs).logits
    assert 0.0 < np.abs(logits).max() <= 0.08 + 1e-6
    np.testing.assert_allclose(jax.nn.softmax(logits), 1 / 6, rtol=0.2)


def test_an_initial_gaussian_policy_is_nearly_standard_normal_everywhere():
    network = PolicyNetwork(VECTOR, (64, 64), "tanh", action_space=Box(-1.0, 1.0, (3,)))
    obs = 100.0 * jax.random.normal(jax.random.key(0), (500, 4))
    distribution = network.apply(initial(network, obs), obs)
    assert isinstance(distribution, DiagonalGaussian)
    assert 0.0 < np.abs(distribution.mean).max() <= 0.08 + 1e-6
    np.testing.assert_array_equal(distribution.log_std, 0.0)


def test_log_std_does_not_depend_on_the_state_and_is_learnt():
    network = PolicyNetwork(VECTOR, (5,), "tanh", action_space=Box(-1.0, 1.0, (2,)))
    obs = jax.random.normal(jax.random.key(0), (6, 4))
    params = random_params(network, obs)
    params["params"]["log_std"] = jnp.asarray([0.3, -0.7])
    distribution = network.apply(params, obs)
    np.testing.assert_array_equal(distribution.log_std, np.tile(np.float32([0.3, -0.7]), (6, 1)))
    gradient = jax.grad(lambda p: network.apply(p, obs).entropy().mean())(params)
    np.testing.assert_allclose(gradient["params"]["log_std"], 1.0, rtol=1e-6)


def test_biases_begin_at_zero_and_kernels_have_their_layers_gain():
    params = initial(ValueNetwork(VECTOR, (16, 16), "tanh"), jnp.ones((1, 4)))
    for path, leaf in leaves(params):
        if path[-1].key == "bias":
            np.testing.assert_array_equal(leaf, 0.0)
        else:
            gain = 1.0 if leaf.shape[-1] == 1 else 2**0.5
            np.testing.assert_allclose(np.linalg.svd(leaf, compute_uv=False), gain, rtol=1e-5)


def test_policy_and_critic_share_no_parameter():
    """Their layers of equal shape are drawn apart, and no array is in both trees."""
    config = purejaxppo.Config(env="CartPole-v1", num_envs=1, num_steps=8, num_minibatches=1, hidden_sizes=(8, 8))
    config.check()
    state = quick_jit(lambda key: purejaxppo.init(config, key))(jax.random.key(0))
    critic = {jax.tree_util.keystr(path): leaf for path, leaf in leaves(state.critic)}
    shared = [
        (leaf, critic[jax.tree_util.keystr(path)])
        for path, leaf in leaves(state.policy)
        if path[-1].key == "kernel" and jax.tree_util.keystr(path) in critic
    ]
    assert len(shared) == 3
    for ours, theirs in shared:
        assert ours.shape != theirs.shape or np.abs(ours - theirs).max() > 0.1
    for ours in jax.tree.leaves(state.policy):
        assert all(ours is not theirs for theirs in jax.tree.leaves(state.critic))
