"""The step along the natural gradient that fills the trust region."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purejaxppo.optimize.conjugate_gradient import conjugate_gradient, inner, solution_metrics
from purejaxppo.types import Metrics


def natural_gradient_step(
    gradient: jax.Array,
    product: Callable[[jax.Array], jax.Array],
    max_kl: jax.Array | float,
    damping: jax.Array | float,
    iterations: int,
) -> tuple[jax.Array, Metrics]:
    """√(2δ / xᵀAx) · x with A x = g: the largest g·s with ½ sᵀAs ≤ δ (Kakade, 2001; arXiv:1502.05477, appendix C).

    A = F + damping · I is what `product` multiplies by; so damping counts in the length, too, and keeps the step
    finite where the policy has become so certain that F vanishes.

    Args:
        gradient: of the surrogate in θ, g [P].
        product: v [P] ↦ A v [P].
        max_kl: δ.

    Returns:
        The step [P], 0 where g is 0 or not finite, and metrics; of them `predicted_kl` is ½ sᵀFs, without the
        damping, `predicted_gain` is g·s, `step_norm` ‖s‖, and `xFx` is xᵀAx, with the damping.
    """
    norm = jnp.linalg.norm(gradient)
    gradient = jnp.where(jnp.isfinite(norm), gradient, 0.0)
    x, residual = conjugate_gradient(product, gradient, iterations)
    metrics = solution_metrics(x, gradient, residual)
    curvature = metrics["xFx"]
    step = jnp.where(curvature > 0, jnp.sqrt(2 * max_kl / jnp.where(curvature > 0, curvature, 1.0)), 0.0) * x
    # ½ sᵀAs is δ, as s was made; ½ sᵀFs is what is left without the damping
    predicted_kl = jnp.where(curvature > 0, max_kl, 0.0) - 0.5 * damping * inner(step, step)
    return step, metrics | {
        "grad_norm": norm,
        "predicted_kl": predicted_kl,
        "predicted_gain": inner(gradient, step),
        "step_norm": jnp.linalg.norm(step),
    }
