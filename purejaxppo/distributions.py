"""Distributions over actions: sampling, densities, divergences, Fisher matrices.

Each is a pytree of its parameters, with any leading axes, and has `sample(key)`, `mode()`, `log_prob(action)`,
`entropy()`, `kl(other)` = KL(self ‖ other), and `fisher(tangent)`: the Fisher matrix of its own parameters times a
tangent of its own shape, so that natural-gradient methods work with all of them.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct


class Categorical(struct.PyTreeNode):
    """p_i = softmax(logits)_i over actions 0 … n-1. A logit of -inf is an action of probability 0."""

    logits: jax.Array  # [..., n]

    @property
    def log_probs(self) -> jax.Array:
        return jax.nn.log_softmax(self.logits)

    def sample(self, key: jax.Array) -> jax.Array:
        """Actions [...], int32."""
        return jax.random.categorical(key, self.logits)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.take_along_axis(self.log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """-Σ p log p, with 0 log 0 = 0."""
        log_probs = self.log_probs
        probs = jnp.exp(log_probs)
        return -jnp.sum(jnp.where(probs > 0, probs * jnp.where(probs > 0, log_probs, 0.0), 0.0), axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """Σ p (log p - log q), with 0 log 0 = 0."""
        probs = jnp.exp(self.log_probs)
        difference = jnp.where(probs > 0, self.log_probs - other.log_probs, 0.0)
        return jnp.sum(probs * difference, axis=-1)

    def fisher(self, tangent: "Categorical") -> "Categorical":
        """(diag(p) - p pᵀ) v, the Fisher matrix in the logits."""
        probs = jax.nn.softmax(self.logits)
        v = tangent.logits
        return Categorical(probs * (v - jnp.sum(probs * v, axis=-1, keepdims=True)))


class DiagonalGaussian(struct.PyTreeNode):
    """Independent normals N(mean, exp(log_std)²) over vectors of length k."""

    mean: jax.Array  # [..., k]
    log_std: jax.Array  # [..., k]

    def sample(self, key: jax.Array) -> jax.Array:
        """Actions [..., k], neither squashed nor clipped."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        """Σ log σ + ½ log 2πe."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "DiagonalGaussian") -> jax.Array:
        """Σ log σ_q/σ_p + (σ_p² + (μ_p - μ_q)²) / 2σ_q² - ½."""
        precision = jnp.exp(-2 * other.log_std)
        moment = jnp.exp(2 * self.log_std) + (self.mean - other.mean) ** 2
        return jnp.sum(other.log_std - self.log_std + 0.5 * moment * precision - 0.5, axis=-1)

    def fisher(self, tangent: "DiagonalGaussian") -> "DiagonalGaussian":
        """(1/σ²) v for the mean, 2 v for log σ."""
        return DiagonalGaussian(tangent.mean * jnp.exp(-2 * self.log_std), 2 * tangent.log_std)
