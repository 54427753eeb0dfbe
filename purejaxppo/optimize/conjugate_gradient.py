"""Conjugate gradient that never returns a NaN."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purejaxppo.types import Metrics

Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """a · b of two vectors, in float32 on every platform: the recurrence is only as good as these."""
    return jnp.dot(a, b, precision="highest")


@jax.named_scope("conjugate_gradient")
def conjugate_gradient(
    product: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int, tolerance: float = 1e-10
) -> tuple[jax.Array, jax.Array]:
    """Solve A x = b for symmetric positive semi-definite A, given v ↦ A v (Hestenes and Stiefel, 1952).

    A scan of fixed length, begun at x = 0, that freezes for good when ‖r‖² ≤ tolerance · ‖b‖², when the curvature
    p·Ap / p·p is not above 1e-6 of the largest seen (in float32 that is 0: A is singular or indefinite), or when
    anything is not finite. So it stands still where the textbook loop divides by 0, and under `vmap` all seeds take
    equally long.

    Args:
        product: the map v [P] ↦ A v [P].
        b: right-hand side [P].
        iterations: at most so many products.
        tolerance: on the squared residual, relative to ‖b‖².

    Returns:
        x [P], always finite, and the residual r = b - A x [P] that the recurrence carries, all 0 where x is 0
        because b is not finite.
    """
    b = jnp.where(jnp.all(jnp.isfinite(b)), b, 0.0)
    target = tolerance * inner(b, b)

    def step(carry: Carry, _: None) -> tuple[Carry, None]:
        x, r, p, rr, largest, active = carry
        ap = product(p)
        curvature, pp = inner(p, ap), inner(p, p)
        active = active & (rr > target) & (curvature > 1e-6 * largest * pp)
        alpha = rr / jnp.where(active, curvature, 1.0)
        new_x, new_r = x + alpha * p, r - alpha * ap
        new_rr = inner(new_r, new_r)
        active = active & jnp.isfinite(new_rr) & jnp.isfinite(inner(new_x, new_x))
        new_p = new_r + (new_rr / jnp.where(active, rr, 1.0)) * p
        new = (new_x, new_r, new_p, new_rr, jnp.maximum(largest, curvature / jnp.where(active, pp, 1.0)))
        x, r, p, rr, largest = (jnp.where(active, n, o) for n, o in zip(new, (x, r, p, rr, largest), strict=True))
        return (x, r, p, rr, largest, active), None

    start = (jnp.zeros_like(b), b, b, inner(b, b), jnp.zeros_like(b[0]), jnp.isfinite(inner(b, b)))
    (x, residual, *_), _ = jax.lax.scan(step, start, None, iterations)
    return x, residual


def solution_metrics(x: jax.Array, b: jax.Array, residual: jax.Array) -> Metrics:
    """How well CG did: ‖b - A x‖ / ‖b‖, and xᵀAx = x·(b - r), with A = F + damping · I in NPG and TRPO."""
    norm = jnp.linalg.norm(b)
    return {"cg_residual": jnp.linalg.norm(residual) / jnp.where(norm > 0, norm, 1.0), "xFx": inner(x, b - residual)}
