"""Advantage actor-critic with a trust region around an averaged policy."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from purejaxppo.advantages import standardize
from purejaxppo.algorithms.a2c import A2C
from purejaxppo.fields import number
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.projection import project_to_half_space
from purejaxppo.optimize.surrogate import mean_kl
from purejaxppo.parallel.mesh import mean_over_shards
from purejaxppo.types import Batch, Metrics, Params, Policy


class A2CTrustRegionState(struct.PyTreeNode):
    """What the method keeps between updates."""

    moments: Any  # Adam's
    average: Params  # θₐ, the averaged policy's parameters


class A2CTrustRegion(A2C):
    """A2C whose gradient respects a trust region (Wang et al., 2016, arXiv:1611.01224, section 3.3).

    With φ the parameters of the distribution π(·|s), for each sample: g = ∇_φ (log π(a|s) · A + c · H),
    k = ∇_φ KL(π_a(·|s) ‖ π(·|s)), z = g - max(0, (k·g - δ) / k·k) k, which is the gradient closest to g that raises
    the linearised KL by δ at most. One step of Adam along mean(∂φ/∂θ z). Then θₐ ← α θₐ + (1 - α) θ.

    The method comes from ACER, whose replay is left out here, as in figure 3 of the PPO paper (arXiv:1707.06347).
    φ are the arrays of the distribution: logits; for a Gaussian, mean and log σ; for Beta, α and β. Wang et al. take
    the probabilities and, for Gaussians, the mean alone: δ means something else there.
    """

    kl_slope: float = number(1.0, "(0, inf)", "δ, the slope at which the KL to the averaged policy may rise")
    average_decay: float = number(0.99, "[0, 1]", "α, how much of the averaged policy stays in each update")

    def init(self, params: Params) -> A2CTrustRegionState:
        return A2CTrustRegionState(MinibatchAdam.init(params), params)

    def update(
        self,
        key: jax.Array,
        policy: Policy,
        params: Params,
        state: A2CTrustRegionState,
        batch: Batch,
        optimizer: MinibatchAdam,
    ) -> tuple[Params, A2CTrustRegionState, Metrics]:
        advantage = standardize(batch.advantage) if self.normalize_advantages else batch.advantage
        average = policy(state.average, batch.obs)

        def objective(distribution: Any) -> jax.Array:
            gain = distribution.log_prob(batch.action) * advantage
            return jnp.sum(gain + self.entropy_coef * distribution.entropy())

        gradient = jax.grad(objective)(batch.distribution)
        normal = jax.grad(lambda new: jnp.sum(average.kl(new)))(batch.distribution)
        direction, active = project_to_half_space(gradient, normal, self.kl_slope, advantage.ndim)

        def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
            """Its gradient is -mean(∂φ/∂θ z)."""
            distribution = policy(params, batch.obs)
            products = jax.tree.map(lambda x, z: jnp.sum(x * z), distribution, batch.distribution)
            policy_loss = -jnp.mean(distribution.log_prob(batch.action) * batch.advantage)
            ascent = sum(jax.tree.leaves(products), start=jnp.zeros(()))
            return -ascent / batch.advantage.size, {"policy_loss": policy_loss}

        one_pass = optimizer.replace(num_epochs=1, num_minibatches=1)
        # z takes the place of the old distribution, which the loss does not need, so as to be cut with its samples
        rows = batch._replace(advantage=advantage, distribution=direction)
        params, moments, metrics = one_pass.minimize(key, loss, params, state.moments, rows, by_sample=True)
        averaged = jax.tree.map(
            lambda a, x: self.average_decay * a + (1.0 - self.average_decay) * x, state.average, params
        )
        metrics["kl"] = mean_kl(policy, params, batch)
        metrics["projected"] = mean_over_shards(jnp.mean(active.astype(jnp.float32)))
        return params, A2CTrustRegionState(moments, averaged), metrics
