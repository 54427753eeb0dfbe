"""Fisher-vector products of a policy against the dense Hessian of the mean KL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from support import quick_jit

from purejaxppo.networks.heads import PolicyNetwork
from purejaxppo.optimize.fisher import fisher_vector_product
from purejaxppo.spaces import Box, Discrete

SPACES = {"discrete": Discrete(3), "continuous": Box(-1.0, 1.0, (2,))}


def mean_kl(old, new):
    """Mean KL(old ‖ new), from the formulas."""
    if hasattr(old, "logits"):
        p, q = (d.logits - jax.scipy.special.logsumexp(d.logits, axis=-1, keepdims=True) for d in (old, new))
        return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))
    ratio = jnp.exp(2 * (old.log_std - new.log_std))
    distance = (old.mean - new.mean) ** 2 / jnp.exp(2 * new.log_std)
    return jnp.mean(jnp.sum(0.5 * (ratio + distance - 1.0 - jnp.log(ratio)), axis=-1))


@functools.cache
def problem(kind, count=9):
    """A policy θ ↦ π(·|obs) that is neither uniform nor centred, θ, and the dense Hessian of its mean KL at θ."""
    policy = PolicyNetwork(Box(-jnp.inf, jnp.inf, (4,)), (5,), "tanh", action_space=SPACES[kind])
    obs = jax.random.normal(jax.random.key(0), (count, 4))
    shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(1), obs))
    theta, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes))
    theta = 0.6 * jax.random.normal(jax.random.key(2), theta.shape)

    def distribution(theta):
        return policy.apply(unravel(theta), obs)

    old = distribution(theta)
    hessian = quick_jit(jax.hessian(lambda theta: mean_kl(old, distribution(theta))))(theta)
    return distribution, theta, np.asarray(hessian, np.float64)


@functools.cache
def dense(kind, damping):
    """The matrix that `fisher_vector_product` multiplies by."""
    distribution, theta, _ = problem(kind)
    product = fisher_vector_product(distribution, theta, damping)
    return np.asarray(quick_jit(jax.vmap(product))(jnp.eye(theta.size)), np.float64)


both = pytest.mark.parametrize("kind", list(SPACES))


@both
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_product_is_with_the_hessian_of_the_mean_kl_plus_damping(kind, damping):
    hessian = problem(kind)[2]
    assert np.abs(hessian).max() > 0.05
    np.testing.assert_allclose(dense(kind, damping), hessian + damping * np.eye(len(hessian)), atol=2e-6, rtol=1e-4)


@both
def test_matrix_is_symmetric(kind):
    np.testing.assert_allclose(dense(kind, 0.0), dense(kind, 0.0).T, atol=1e-6)


@both
def test_matrix_is_positive_semi_definite_and_damping_is_its_least_eigenvalue(kind):
    """F is singular here: the softmax does not feel a shift of its biases; nine samples leave directions unseen."""
    assert np.linalg.eigvalsh(dense(kind, 0.0)).min() == pytest.approx(0.0, abs=2e-6)
    assert np.linalg.eigvalsh(dense(kind, 0.1)).min() == pytest.approx(0.1, abs=2e-6)


@both
def test_kl_of_a_small_step_is_half_its_fisher_norm(kind):
    distribution, theta, _ = problem(kind)
    v = np.random.default_rng(3).standard_normal(theta.size)
    v *= 0.03 / np.linalg.norm(v)
    kl = float(mean_kl(distribution(theta), distribution(theta + jnp.asarray(v, jnp.float32))))
    assert kl == pytest.approx(0.5 * v @ dense(kind, 0.0) @ v, rel=0.05)


@both
def test_product_is_linear(kind):
    distribution, theta, _ = problem(kind)
    product = fisher_vector_product(distribution, theta, 0.05)
    u, v = np.random.default_rng(4).standard_normal((2, theta.size)).astype(np.float32)
    np.testing.assert_allclose(product(2.0 * u - v), 2.0 * product(u) - product(v), atol=1e-5)
    np.testing.assert_array_equal(product(jnp.zeros_like(theta)), 0.0)


@both
def test_product_is_a_mean_over_samples(kind):
    """Samples seen twice change nothing."""
    distribution, theta, _ = problem(kind)
    v = jnp.ones_like(theta)
    twice = fisher_vector_product(
        lambda theta: jax.tree.map(lambda x: jnp.concatenate([x, x]), distribution(theta)), theta, 0.1
    )
    np.testing.assert_allclose(twice(v), fisher_vector_product(distribution, theta, 0.1)(v), atol=1e-6)


@both
def test_product_under_vmap_is_each_policys_own(kind):
    """Different parameters and dampings side by side."""
    distribution, theta, _ = problem(kind)
    thetas = theta[None] + 0.2 * jax.random.normal(jax.random.key(5), (3, theta.size))
    dampings, v = jnp.asarray([0.0, 0.1, 1.0]), jax.random.normal(jax.random.key(6), (3, theta.size))

    def product(theta, damping, v):
        return fisher_vector_product(distribution, theta, damping)(v)

    lone = [product(*arguments) for arguments in zip(thetas, dampings, v, strict=True)]
    np.testing.assert_allclose(quick_jit(jax.vmap(product))(thetas, dampings, v), np.stack(lone), atol=1e-5)


def test_the_network_itself_is_evaluated_once():
    """It is linearised twice, forward and back; XLA sees that both begin with the same two tanh."""
    policy = PolicyNetwork(Box(-jnp.inf, jnp.inf, (4,)), (5, 6), "tanh", action_space=SPACES["discrete"])
    obs = jnp.ones((9, 4))
    shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(1), obs))
    theta, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes))

    def product(theta, v):
        return fisher_vector_product(lambda theta: policy.apply(unravel(theta), obs), theta, 0.0)(v)

    text = jax.jit(product).lower(theta, theta).compile().as_text()
    assert text.count(" tanh(") == 2
