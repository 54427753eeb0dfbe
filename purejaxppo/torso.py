"""From an observation to features: encoders, hidden layers, and their orthogonal initialisation."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from purejaxppo.types import Box, Discrete, Observation, ObservationSpace

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "swish": nn.swish}


def orthogonal(gain: float) -> Any:
    """Initialiser: `gain` times a Haar-random matrix with orthonormal rows or columns (Saxe et al., 2014).

    Gram–Schmidt, each column projected twice ("twice is enough": Giraud et al., 2005), instead of LAPACK's QR:
    batched QR under `vmap` deadlocks XLA on CPUs with few cores, and is slow on a GPU for small matrices.
    """

    return lambda key, shape, dtype=jnp.float32: gain * _orthonormal(key, shape, dtype)


@partial(jax.jit, static_argnames=("shape", "dtype"))  # flax asks for its shape wherever a layer is used: traced once
def _orthonormal(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    rows, columns = max(shape), min(shape)
    gaussian = jax.random.normal(key, (columns, rows), dtype)

    def orthonormalize(i: jax.Array, basis: jax.Array) -> jax.Array:
        vector = gaussian[i]
        for _ in range(2):  # rows of `basis` not yet filled are 0 and take nothing away
            vector -= (basis @ vector) @ basis
        return basis.at[i].set(vector / jnp.linalg.norm(vector))

    basis = jax.lax.fori_loop(0, columns, orthonormalize, jnp.zeros_like(gaussian))
    return basis if shape[0] == columns else basis.T


def dense(features: int, gain: float) -> nn.Dense:
    return nn.Dense(features, kernel_init=orthogonal(gain))


def head(features: int, gain: float) -> nn.Dense:
    """A last layer, of few outputs."""
    return nn.Dense(features, kernel_init=orthogonal(gain), dot_general=_narrow_matmul)


def _narrow_matmul(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """x [..., I] · kernel [I, O] for small O, written so that XLA's CPU backend is fast at the kernel's gradient.

    That is computed as gᵀx, [O, I], and then transposed; xᵀg takes 4 to 12 times as long. The barrier keeps XLA from
    making the one of the other.
    """
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(x, transposed, (((x.ndim - 1,), (1,)), ((), ())))


def convolution(x: jax.Array, features: int, size: int, stride: int = 1) -> jax.Array:
    """A convolution without padding, and ReLU: [..., H, W, C] -> [..., H', W', features].

    It is written as one matmul on patches: with one set of filters per seed, XLA's grouped convolutions are many times
    slower.
    """
    height, width = (x.shape[axis] - size + 1 for axis in (-3, -2))
    patches = [x[..., i : i + height : stride, j : j + width : stride, :] for i in range(size) for j in range(size)]
    return nn.relu(dense(features, 2**0.5)(jnp.concatenate(patches, axis=-1)))


class Torso(nn.Module):
    """Observation → features: each entry is encoded, in the order of their names; then all go through one MLP.

    Vectors and matrices are flattened; integers are embedded (as wide as the first hidden layer). Images [H, W, C] of
    at least 36 × 36 go through the network of Mnih et al. (2015, Nature 518; dense 512 included, bytes divided by
    255), smaller ones through 16 filters, 3×3 (Young and Tian, 2019, arXiv:1903.03176); ReLU in both.
    """

    space: ObservationSpace  # what it sees
    hidden_sizes: tuple[int, ...]
    activation: str
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: Observation) -> jax.Array:  # [..., O] -> [..., features]
        entries = select(self.space, obs)
        if isinstance(self.space, Mapping):
            x = jnp.concatenate([self._encode(self.space[name], entries[name]) for name in entries], axis=-1)
        else:
            x = self._encode(self.space, entries)
        for size in self.hidden_sizes:
            x = dense(size, 2**0.5)(x)
            x = ACTIVATIONS[self.activation](nn.LayerNorm()(x) if self.layer_norm else x)
        return x

    def _encode(self, space: Any, obs: jax.Array) -> jax.Array:
        if isinstance(space, Discrete):
            return nn.Embed(space.n, self.hidden_sizes[0] if self.hidden_sizes else 64)(obs)
        rank = len(space.shape)
        x = obs.astype(jnp.float32)
        batch_shape = x.shape[: x.ndim - rank]
        if is_large_image(space):
            x = x / 255.0 if obs.dtype == jnp.uint8 else x
            x = convolution(convolution(convolution(x, 32, 8, 4), 64, 4, 2), 64, 3)
            return nn.relu(dense(512, 2**0.5)(x.reshape(*batch_shape, -1)))
        if rank == 3:
            x = convolution(x, 16, 3)
        return x.reshape(*batch_shape, -1)


def is_large_image(space: Box) -> bool:
    return len(space.shape) == 3 and min(space.shape[:2]) >= 36


def select(space: ObservationSpace, obs: Observation) -> Observation:
    """The entries of an observation that `space` has, sorted by name; the observation itself if it is no dict."""
    return {name: obs[name] for name in sorted(space)} if isinstance(space, Mapping) else obs
