"""Advantage actor-critic."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from purejaxppo.advantages import standardize
from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.policy_gradient import policy_gradient_step
from purejaxppo.types import Batch, Metrics, Params, Policy


class A2C(Hyperparameters):
    """Advantage actor-critic, the synchronous form of A3C (Mnih et al., 2016, arXiv:1602.01783).

    One step of Adam per batch along mean(∇ log π(a|s) · A + c · ∇H(π(·|s))), A by GAE.
    """

    entropy_coef: float = number(0.01, "[0, inf)", "weight of the entropy bonus")
    normalize_advantages: bool = static(False, "standardise the advantages over the batch")

    # The paper's 16 actors × 5 steps; learning rate and entropy bonus are OpenAI Baselines'. Both have RMSProp in place
    # of Adam, and lower its step size as they go.
    published: ClassVar[Mapping[str, Any]] = {
        "num_envs": 16,
        "num_steps": 5,
        "learning_rate": 7e-4,
        "gae_lambda": 1.0,
        "num_epochs": 1,
        "num_minibatches": 1,
    }

    def init(self, params: Params) -> Any:
        return MinibatchAdam.init(params)

    def update(
        self, key: jax.Array, policy: Policy, params: Params, state: Any, batch: Batch, optimizer: MinibatchAdam
    ) -> tuple[Params, Any, Metrics]:
        advantage = standardize(batch.advantage) if self.normalize_advantages else batch.advantage
        return policy_gradient_step(key, policy, params, state, batch, advantage, self.entropy_coef, optimizer)
