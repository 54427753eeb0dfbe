"""The gradient closest to a given one that does not raise the linearised KL by more than a bound."""

from typing import Any

import jax
import jax.numpy as jnp


def project_to_half_space(
    gradient: Any, normal: Any, bound: jax.Array | float, sample_axes: int = 1
) -> tuple[Any, jax.Array]:
    """argmin ½ ‖g - z‖² subject to k·z ≤ δ, for each sample: z = g - max(0, (k·g - δ) / k·k) k.

    (Wang et al., 2016, arXiv:1611.01224, section 3.3.)

    Args:
        gradient: g, a tree of arrays [N, ...], or with more leading axes of samples.
        normal: k, a tree of the same shapes.
        bound: δ.
        sample_axes: how many leading axes count samples.

    Returns:
        z, a tree of the same shapes, and where the bound was active, [N] bool. Where k is 0, z is g.
    """

    def dot(a: Any, b: Any) -> jax.Array:
        products = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=tuple(range(sample_axes, x.ndim))), a, b)
        return sum(jax.tree.leaves(products), start=jnp.zeros(()))

    excess, square = dot(normal, gradient) - bound, dot(normal, normal)
    active = (excess > 0) & (square > 0)
    length = jnp.where(active, excess / jnp.where(active, square, 1.0), 0.0)
    z = jax.tree.map(lambda g, k: g - jnp.expand_dims(length, tuple(range(sample_axes, g.ndim))) * k, gradient, normal)
    return z, active
