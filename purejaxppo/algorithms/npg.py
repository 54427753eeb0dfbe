"""Natural policy gradient."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from purejaxppo.advantages import standardize
from purejaxppo.optimize.fisher import fisher_vector_product
from purejaxppo.optimize.natural_gradient import natural_gradient_step
from purejaxppo.optimize.surrogate import surrogate_and_kl
from purejaxppo.types import Batch, Metrics, Params, Policy, number, static


class NPG(struct.PyTreeNode):
    """Natural policy gradient with a normalised step (Kakade, 2001; Rajeswaran et al., 2017, arXiv:1703.02660, eq. 5).

    θ ← θ + √(2δ / xᵀFx) · x,   F x = g by conjugate gradient. The step is taken if it is finite: no line search.
    """

    max_kl: float = number(0.01, "(0, inf)", "δ, the KL that the quadratic model gives each step")
    damping: float = number(0.1, "[0, inf)", "added to the Fisher matrix's diagonal")
    cg_iterations: int = static(15, "conjugate-gradient iterations at most", interval="[1, inf)")
    fisher_subsample: int = static(1, "use every k-th sample for the Fisher matrix", interval="[1, inf)")
    normalize_advantages: bool = static(True, "standardise the advantages over the batch")

    published: ClassVar[Mapping[str, Any]] = {  # TRPO's
        "num_envs": 2,
        "num_steps": 1024,
        "learning_rate": 1e-3,
        "num_epochs": 10,
        "num_minibatches": 16,
    }

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(
        self, key: jax.Array, policy: Policy, params: Params, state: tuple[()], batch: Batch, optimizer: Any
    ) -> tuple[Params, tuple[()], Metrics]:
        theta, unravel = ravel_pytree(params)
        advantage = standardize(batch.advantage) if self.normalize_advantages else batch.advantage
        evaluate = surrogate_and_kl(policy, unravel, batch, advantage)
        gradient = jax.grad(lambda theta: evaluate(theta)[0])(theta)
        sample = batch.obs[:: self.fisher_subsample]
        product = fisher_vector_product(lambda theta: policy(unravel(theta), sample), theta, self.damping)
        step, metrics = natural_gradient_step(gradient, product, self.max_kl, self.damping, self.cg_iterations)

        gain, kl = evaluate(theta + step)
        accepted = jnp.all(jnp.isfinite(step)) & jnp.isfinite(gain) & jnp.isfinite(kl)
        theta = jnp.where(accepted, theta + step, theta)
        gain, kl = jnp.where(accepted, gain, 0.0), jnp.where(accepted, kl, 0.0)
        metrics |= {"policy_loss": -gain, "gain": gain, "kl": kl, "accepted": accepted.astype(jnp.float32)}
        return unravel(theta), state, metrics
