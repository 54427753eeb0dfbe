"""Trust-region policy optimization."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from purejaxppo.advantages import standardize
from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.optimize.conjugate_gradient import inner
from purejaxppo.optimize.line_search import backtrack
from purejaxppo.optimize.local_model import local_model
from purejaxppo.optimize.natural_gradient import natural_gradient_step
from purejaxppo.precision import PRECISIONS, matmul_precision
from purejaxppo.types import Batch, Metrics, Params, Policy


class TRPO(Hyperparameters):
    """Trust-region policy optimization (Schulman et al., 2015, arXiv:1502.05477, eq. 14 and appendix C).

    maximise mean(r A) subject to mean KL(π_old ‖ π) ≤ δ: the natural-gradient step √(2δ / xᵀFx) · x with F x = g,
    F being the Fisher matrix plus damping · I; then the first of its fractions 1, β, β², … whose true KL is ≤ δ and
    whose surrogate is up; none, and θ stays.

    With `region="ball"` the constraint is ½ ‖Δθ‖² ≤ δ, a Euclidean ball: F becomes the identity, the step is
    √(2δ) g/‖g‖, and the KL is not constrained. It shows what measuring distance in behaviour is good for.
    """

    max_kl: float = number(0.01, "(0, inf)", "δ, the trust region's size")
    damping: float = number(0.1, "[0, inf)", "added to the Fisher matrix's diagonal")
    cg_iterations: int = static(15, "conjugate-gradient iterations at most", interval="[1, 1e6]")
    backtrack_factor: float = number(0.8, "(0, 1)", "β, by which the line search shortens the step")
    max_backtracks: int = static(10, "times that the step is shortened at most", interval="[0, 1e6]")
    fisher_subsample: int = static(1, "estimate the Fisher matrix from one sample in k", interval="[1, 1e6]")
    region: str = static("kl", "the region: mean KL, or a Euclidean ball in the parameters", choices=("kl", "ball"))
    normalize_advantages: bool = static(True, "standardise the advantages over the batch")
    step_precision: str = static(
        "default", "`precision` of what makes the step: gradient, Fisher products, line search", choices=PRECISIONS
    )

    first_order: ClassVar[bool] = False
    run_by_run: ClassVar[bool] = True
    # Stable-Baselines3-contrib's, which clips no gradient of the critic. Its 2,048 steps come from two environments.
    published: ClassVar[Mapping[str, Any]] = {
        "num_envs": 2,
        "num_steps": 1024,
        "learning_rate": 1e-3,
        "num_epochs": 10,
        "num_minibatches": 16,
        "max_grad_norm": math.inf,
    }

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
            if self.region == "ball":
                bound = jnp.inf
                step, metrics = natural_gradient_step(model.gradient, lambda v: v, self.max_kl, 0.0, self.cg_iterations)
                curvature = inner(step, model.product(step)) - self.damping * inner(step, step)
                metrics["predicted_kl"] = 0.5 * curvature
            else:
                bound = self.max_kl
                step, metrics = natural_gradient_step(
                    model.gradient, model.product, self.max_kl, self.damping, self.cg_iterations
                )
            theta, found = backtrack(
                model.evaluate, model.theta, step, bound, self.backtrack_factor, self.max_backtracks
            )
        taken = jnp.where(found.accepted, found.fraction, 0.0)  # all metrics are of the step really taken
        metrics |= {
            "predicted_kl": metrics["predicted_kl"] * taken**2,
            "predicted_gain": metrics["predicted_gain"] * taken,
            "step_norm": metrics["step_norm"] * taken,
            "policy_loss": jnp.where(found.accepted, -found.gain, 0.0),
            "gain": jnp.where(found.accepted, found.gain, 0.0),
            "kl": jnp.where(found.accepted, found.kl, 0.0),
            "accepted": found.accepted.astype(jnp.float32),
            "backtracks": found.backtracks.astype(jnp.float32),
        }
        return model.unravel(theta), state, metrics
