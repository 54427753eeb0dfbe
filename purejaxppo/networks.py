"""Policy and value networks, and their orthogonal initialisation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from purejaxppo.distributions import Categorical, DiagonalGaussian
from purejaxppo.types import Discrete, Space

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "swish": nn.swish}


def orthogonal(gain: float) -> Any:
    """Initialiser: `gain` times a Haar-random matrix with orthonormal rows or columns (Saxe et al., 2014).

    Gram–Schmidt, each column projected twice ("twice is enough": Giraud et al., 2005), instead of LAPACK's QR:
    batched QR under `vmap` deadlocks XLA on CPUs with few cores, and is slow on a GPU for small matrices.
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = max(shape), min(shape)
        gaussian = jax.random.normal(key, (columns, rows), dtype)

        def orthonormalize(i: jax.Array, basis: jax.Array) -> jax.Array:
            vector = gaussian[i]
            for _ in range(2):  # rows of `basis` not yet filled are 0 and take nothing away
                vector -= (basis @ vector) @ basis
            return basis.at[i].set(vector / jnp.linalg.norm(vector))

        basis = jax.lax.fori_loop(0, columns, orthonormalize, jnp.zeros_like(gaussian))
        return gain * (basis if shape[0] == columns else basis.T)

    return init


def dense(features: int, gain: float) -> nn.Dense:
    return nn.Dense(features, kernel_init=orthogonal(gain))


class Torso(nn.Module):
    """Observation → features. Vectors and matrices go through an MLP; images [H, W, C] first through a convolution.

    The convolution (16 filters, 3×3, ReLU: Young and Tian, 2019, arXiv:1903.03176) is written as one matmul on
    patches: with one set of filters per seed, XLA's grouped convolutions are many times slower.
    """

    rank: int  # of one observation
    hidden_sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:  # [..., O] -> [..., features]
        x = obs.astype(jnp.float32)
        batch_shape = x.shape[: x.ndim - self.rank]
        if self.rank == 3:
            height, width = x.shape[-3] - 2, x.shape[-2] - 2
            shifts = [x[..., i : i + height, j : j + width, :] for i in range(3) for j in range(3)]
            x = nn.relu(dense(16, 2**0.5)(jnp.concatenate(shifts, axis=-1)))
        x = x.reshape(*batch_shape, -1)
        for size in self.hidden_sizes:
            x = ACTIVATIONS[self.activation](dense(size, 2**0.5)(x))
        return x


class PolicyNetwork(nn.Module):
    """π(·|s): a categorical for `Discrete`, a Gaussian with state-independent log-std for `Box`."""

    action_space: Space
    rank: int
    hidden_sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs: jax.Array) -> Categorical | DiagonalGaussian:
        x = Torso(self.rank, self.hidden_sizes, self.activation)(obs)
        if isinstance(self.action_space, Discrete):
            return Categorical(dense(self.action_space.n, 0.01)(x))
        size = math.prod(self.action_space.shape)
        mean = dense(size, 0.01)(x)
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return DiagonalGaussian(mean, jnp.broadcast_to(log_std, mean.shape))


class ValueNetwork(nn.Module):
    """V(s), without the trailing axis."""

    rank: int
    hidden_sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return dense(1, 1.0)(Torso(self.rank, self.hidden_sizes, self.activation)(obs))[..., 0]
