"""The gradient closest to a given one that does not raise the linearised KL by more than a bound."""

from typing import Any

import jax
import jax.numpy as jnp


def project_to_half_space(gradient: Any, normal: Any, bound: jax.Array | float) -> tuple[Any, jax.Array]:
    """argmin ½ ‖g - z‖² subject to k·z ≤ δ, for each sample: z = g - max(0, (k·g - δ) / k·k) k.

    (Wang et al., 2016, arXiv:1611.01224, eq. 12 and 13.)

    Args:
        gradient: g, a tree of arrays [N, ...].
        normal: k, a tree of the same shapes.
        bound: δ.

    Returns:
        z, a tree of the same shapes, and where the bound was active, [N] bool. Where k is 0, z is g.
    """

    def dot(a: Any, b: Any) -> jax.Array:
        products = jax.tree.map(lambda x, y: jnp.sum((x * y).reshape(len(x), -1), axis=1), a, b)
        return sum(jax.tree.leaves(products), start=jnp.zeros(()))

    excess, square = dot(normal, gradient) - bound, dot(normal, normal)
    active = (excess > 0) & (square > 0)
    length = jnp.where(active, excess / jnp.where(active, square, 1.0), 0.0)
    z = jax.tree.map(lambda g, k: g - length.reshape(-1, *(1,) * (g.ndim - 1)) * k, gradient, normal)
    return z, active
