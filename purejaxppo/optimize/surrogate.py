"""The surrogate objective of the trust-region methods."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.parallel.mesh import mean_over_shards
from purejaxppo.parallel.vmapping import in_chunks
from purejaxppo.types import Batch, Params, Policy


def likelihood_ratio(log_prob: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    """π(a|s) / π_old(a|s). |log ratio| is clamped to 20, where the gradient becomes 0 instead of overflowing."""
    return jnp.exp(jax.lax.clamp(-20.0, log_prob - old_log_prob, 20.0))


def surrogate_and_kl(
    policy: Policy, unravel: Callable[[jax.Array], Any], batch: Batch, advantage: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """θ ↦ (gain, kl): mean (ratio - 1) · A, and mean KL(π_old ‖ π_θ) (arXiv:1502.05477, eq. 14)."""

    def evaluate(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = policy(unravel(theta), batch.obs)
        ratio = likelihood_ratio(new.log_prob(batch.action), batch.log_prob)
        return jnp.mean((ratio - 1.0) * advantage), jnp.mean(batch.distribution.kl(new))

    return evaluate


def mean_kl(policy: Policy, params: Params, batch: Batch) -> jax.Array:
    """The mean of KL(π_old ‖ π) over a batch, and over all devices that share it."""
    divergence = in_chunks(
        lambda x: x[1].kl(policy(params, x[0])), (batch.obs, batch.distribution), batch.log_prob.ndim
    )
    return mean_over_shards(jnp.mean(divergence))
