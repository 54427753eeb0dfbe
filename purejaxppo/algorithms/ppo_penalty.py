"""Proximal policy optimization with a KL penalty."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from purejaxppo.advantages import standardize_advantages
from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.surrogate import likelihood_ratio, mean_kl
from purejaxppo.types import Batch, Metrics, Params, Policy


class PPOPenaltyState(struct.PyTreeNode):
    """What the method keeps between updates."""

    moments: Any  # Adam's
    kl_coef: jax.Array  # [] β


class PPOPenalty(Hyperparameters):
    """PPO with a KL penalty, β fixed or adaptive (Schulman et al., 2017, arXiv:1707.06347, eq. 8).

    L = mean(r A - β KL(π_old ‖ π)) + c · H,   r = π(a|s) / π_old(a|s); Adam, K epochs × M minibatches. Then, if
    adaptive, with d the batch's mean KL: β ← β/2 where d < target/1.5, β ← 2β where d > 1.5 target. β is kept within
    1e-6 … 1e6, so that it can always come back. The metric `kl_coef` is the β that an update used.
    """

    kl_coef: float = number(1.0, "[0, inf)", "β, at the start")
    adaptive: bool = static(True, "adapt β to the KL target; otherwise it is fixed")
    kl_target: float = number(0.01, "(0, inf)", "the mean KL per update that β is adapted to")
    entropy_coef: float = number(0.0, "[0, inf)", "weight of the entropy bonus")
    normalize_advantages: str = static(
        "minibatch",
        "standardise the advantages per minibatch, per batch or not",
        choices=("minibatch", "batch", "none"),
    )

    by_minibatches: ClassVar[bool] = True
    # The paper's table 3, its 2,048 steps from four environments; that gradients are clipped is not from there.
    published: ClassVar[Mapping[str, Any]] = {
        "num_envs": 4,
        "num_steps": 512,
        "learning_rate": 3e-4,
        "num_epochs": 10,
        "num_minibatches": 32,
    }

    def init(self, params: Params) -> PPOPenaltyState:
        return PPOPenaltyState(MinibatchAdam.init(params), jnp.asarray(self.kl_coef, jnp.float32))

    def update(
        self,
        key: jax.Array,
        policy: Policy,
        params: Params,
        state: PPOPenaltyState,
        batch: Batch,
        optimizer: MinibatchAdam,
    ) -> tuple[Params, PPOPenaltyState, Metrics]:
        if self.normalize_advantages == "batch":
            batch = standardize_advantages(batch)

        def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
            distribution = policy(params, batch.obs)
            ratio = likelihood_ratio(distribution.log_prob(batch.action), batch.log_prob)
            policy_loss = -jnp.mean(ratio * batch.advantage)
            penalty = state.kl_coef * jnp.mean(batch.distribution.kl(distribution))
            bonus = self.entropy_coef * jnp.mean(distribution.entropy())
            return policy_loss + penalty - bonus, {"policy_loss": policy_loss}

        prepare = standardize_advantages if self.normalize_advantages == "minibatch" else None
        params, moments, metrics = optimizer.minimize(
            key, loss, params, state.moments, batch, prepare=prepare, by_sample=True
        )
        kl = mean_kl(policy, params, batch)
        next_coef = self.adapt(state.kl_coef, kl) if self.adaptive else state.kl_coef
        return params, PPOPenaltyState(moments, next_coef), metrics | {"kl": kl, "kl_coef": state.kl_coef}

    def adapt(self, kl_coef: jax.Array, kl: jax.Array) -> jax.Array:
        """The next β, given the mean KL that the last one led to."""
        factor = jnp.where(kl < self.kl_target / 1.5, 0.5, jnp.where(kl > self.kl_target * 1.5, 2.0, 1.0))
        return jnp.clip(kl_coef * factor, 1e-6, 1e6)
