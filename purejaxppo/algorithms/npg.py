"""Natural policy gradient."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from purejaxppo.advantages import standardize
from purejaxppo.algorithms.trpo import TRPO
from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.optimize.local_model import local_model
from purejaxppo.optimize.natural_gradient import natural_gradient_step
from purejaxppo.precision import PRECISIONS, matmul_precision
from purejaxppo.types import Batch, Metrics, Params, Policy


class NPG(Hyperparameters):
    """Natural policy gradient (Kakade, 2001), its step normalised (Rajeswaran et al., 2017, arXiv:1703.02660, eq. 5).

    θ ← θ + √(2δ / xᵀFx) · x,   F x = g by conjugate gradient, F being the Fisher matrix plus damping · I. The step is
    taken if it is finite: there is no line search. (Rajeswaran et al. write δ for our 2δ.)
    """

    max_kl: float = number(0.01, "(0, inf)", "δ, what the quadratic model of the KL, damping included, gives each step")
    damping: float = number(0.1, "[0, inf)", "added to the Fisher matrix's diagonal")
    cg_iterations: int = static(15, "conjugate-gradient iterations at most", interval="[1, 1e6]")
    fisher_subsample: int = static(1, "estimate the Fisher matrix from one sample in k", interval="[1, 1e6]")
    normalize_advantages: bool = static(True, "standardise the advantages over the batch")
    step_precision: str = static(
        "default", "`precision` of what makes the step: gradient, Fisher products, surrogate and KL", choices=PRECISIONS
    )

    first_order: ClassVar[bool] = False
    run_by_run: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any]] = TRPO.published  # the method's papers name few

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(
        self, key: jax.Array, policy: Policy, params: Params, state: tuple[()], batch: Batch, optimizer: Any
    ) -> tuple[Params, tuple[()], Metrics]:
        advantage = standardize(batch.advantage) if self.normalize_advantages else batch.advantage
        with matmul_precision(self.step_precision):
            model = local_model(
                key, policy, params, batch, advantage, self.damping, self.fisher_subsample, optimizer.kernels
            )
            step, metrics = natural_gradient_step(
                model.gradient, model.product, self.max_kl, self.damping, self.cg_iterations
            )
            gain, kl = model.evaluate(model.theta + step)
        accepted = jnp.all(jnp.isfinite(step)) & jnp.isfinite(gain) & jnp.isfinite(kl)
        theta = jnp.where(accepted, model.theta + step, model.theta)
        gain, kl = jnp.where(accepted, gain, 0.0), jnp.where(accepted, kl, 0.0)
        metrics |= {"policy_loss": -gain, "gain": gain, "kl": kl, "accepted": accepted.astype(jnp.float32)}
        return model.unravel(theta), state, metrics
