"""REINFORCE."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from purejaxppo.advantages import standardize
from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.policy_gradient import policy_gradient_step
from purejaxppo.types import Batch, Metrics, Params, Policy


class REINFORCE(Hyperparameters):
    """Monte-Carlo policy gradient (Williams, 1992; Sutton and Barto, 2018, eq. 13.11, without their pseudocode's γᵗ).

    One step of Adam per batch along mean ∇ log π(a|s) · (G - b(s)); b = V with the baseline, else 0. Where an episode
    is cut off, by a limit or the end of the rollout, the return G goes on with V, with or without the baseline. With
    `advantage_estimator="gae"` G is the λ-return.
    """

    baseline: bool = static(True, "subtract the critic's V(s) from the return")
    normalize_advantages: bool = static(False, "standardise what multiplies the gradient, over the batch")
    entropy_coef: float = number(0.0, "[0, inf)", "weight of the entropy bonus")

    published: ClassVar[Mapping[str, Any]] = {  # no reference implementation: tuned on CartPole
        "num_envs": 8,
        "num_steps": 256,
        "learning_rate": 3e-3,
        "num_epochs": 10,
        "num_minibatches": 8,
        "advantage_estimator": "monte-carlo",
        "value_target": "monte-carlo",
    }

    def init(self, params: Params) -> Any:
        return MinibatchAdam.init(params)

    def update(
        self, key: jax.Array, policy: Policy, params: Params, state: Any, batch: Batch, optimizer: MinibatchAdam
    ) -> tuple[Params, Any, Metrics]:
        advantage = batch.advantage if self.baseline else batch.advantage + batch.value
        if self.normalize_advantages:
            advantage = standardize(advantage)
        return policy_gradient_step(key, policy, params, state, batch, advantage, self.entropy_coef, optimizer)
