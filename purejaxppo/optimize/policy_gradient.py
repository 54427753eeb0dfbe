"""One step along the likelihood-ratio policy gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.surrogate import mean_kl
from purejaxppo.types import Batch, Metrics, Params, Policy


def policy_gradient_step(
    key: jax.Array,
    policy: Policy,
    params: Params,
    moments: Any,
    batch: Batch,
    advantage: jax.Array,
    entropy_coef: jax.Array | float,
    optimizer: MinibatchAdam,
) -> tuple[Params, Any, Metrics]:
    """Adam on mean(log π(a|s) · A + entropy_coef · H(π(·|s))), one step on the whole batch (Williams, 1992)."""

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        distribution = policy(params, batch.obs)
        policy_loss = -jnp.mean(distribution.log_prob(batch.action) * batch.advantage)
        return policy_loss - entropy_coef * jnp.mean(distribution.entropy()), {"policy_loss": policy_loss}

    one_pass = optimizer.replace(num_epochs=1, num_minibatches=1)
    batch = batch._replace(advantage=advantage)
    params, moments, metrics = one_pass.minimize(key, loss, params, moments, batch, by_sample=True)
    metrics["kl"] = mean_kl(policy, params, batch)
    return params, moments, metrics
