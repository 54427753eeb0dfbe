"""Conjugate gradient that never returns a NaN."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purejaxppo.types import Metrics


def conjugate_gradient(
    product: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int, tolerance: float = 1e-10
) -> tuple[jax.Array, jax.Array]:
    """Solve A x = b for symmetric positive semi-definite A, given v ↦ A v (Hestenes and Stiefel, 1952).

    A scan of fixed length, begun at x = 0, that freezes for good when ‖r‖² ≤ tolerance · ‖b‖², when the curvature
    p·Ap is not above 1e-12 p·p (a singular or indefinite A), or when anything is not finite. So it stands still
    where the textbook loop divides by 0, and under `vmap` all seeds take equally long.

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
    target = tolerance * (b @ b)

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], None]:
        x, r, p, rr, active = carry
        ap = product(p)
        curvature = p @ ap
        active = active & (rr > target) & (curvature > 1e-12 * (p @ p))
        alpha = rr / jnp.where(active, curvature, 1.0)
        new_x, new_r = x + alpha * p, r - alpha * ap
        new_rr = new_r @ new_r
        active = active & jnp.isfinite(new_rr) & jnp.isfinite(new_x @ new_x)
        new_p = new_r + (new_rr / jnp.where(active, rr, 1.0)) * p
        new = (new_x, new_r, new_p, new_rr)
        x, r, p, rr = (jnp.where(active, n, o) for n, o in zip(new, (x, r, p, rr), strict=True))
        return (x, r, p, rr, active), None

    start = (jnp.zeros_like(b), b, b, b @ b, jnp.isfinite(b @ b))
    (x, residual, *_), _ = jax.lax.scan(step, start, None, iterations)
    return x, residual


def solution_metrics(x: jax.Array, b: jax.Array, residual: jax.Array) -> Metrics:
    """How well CG did: ‖b - A x‖ / ‖b‖, and xᵀAx = x·(b - r)."""
    norm = jnp.linalg.norm(b)
    return {
        "cg_residual": jnp.linalg.norm(residual) / jnp.where(norm > 0, norm, 1.0),
        "xFx": x @ (b - residual),
    }
