"""Proximal policy optimization with a clipped surrogate."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from purejaxppo.advantages import standardize_advantages
from purejaxppo.fields import Hyperparameters, limitless, number, static
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.surrogate import likelihood_ratio, mean_kl
from purejaxppo.types import Batch, Metrics, Params, Policy


class PPO(Hyperparameters):
    """PPO-clip (Schulman et al., 2017, arXiv:1707.06347, eq. 7).

    L = mean min(r A, clip(r, 1-ε, 1+ε) A) + c · H,   r = π(a|s) / π_old(a|s); Adam, K epochs × M minibatches.

    Dual clip (Ye et al., 2020, arXiv:1912.09729): where A < 0 the term is at least `dual_clip` · A.
    """

    clip_eps: float = number(0.2, "(0, inf]", "ε, how far the ratio may leave 1; inf is the unclipped surrogate")
    dual_clip: float = number(float("inf"), "(1, inf]", "bound on the ratio where the advantage is negative")
    entropy_coef: float = number(0.01, "[0, inf)", "weight of the entropy bonus")
    target_kl: float = number(
        float("inf"), "(0, inf]", "the policy's epochs stop once a minibatch's mean KL exceeds this"
    )
    normalize_advantages: str = static(
        "minibatch",
        "standardise the advantages per minibatch, per batch or not",
        choices=("minibatch", "batch", "none"),
    )

    by_minibatches: ClassVar[bool] = True
    # CleanRL's ppo.py, but for one thing: CleanRL, like Stable-Baselines3, clips the joint gradient of policy and
    # critic, where the critic's is the larger at first. Here each is clipped by itself, so that the policy's first
    # steps are longer (three times on Pendulum). `joint_update=True` is theirs.
    published: ClassVar[Mapping[str, Any]] = {
        "num_envs": 4,
        "num_steps": 128,
        "learning_rate": 2.5e-4,
        "anneal_learning_rate": True,
        "num_epochs": 4,
        "num_minibatches": 4,
        "value_clip_eps": 0.2,
    }

    def init(self, params: Params) -> Any:
        return MinibatchAdam.init(params)

    def update(
        self, key: jax.Array, policy: Policy, params: Params, state: Any, batch: Batch, optimizer: MinibatchAdam
    ) -> tuple[Params, Any, Metrics]:
        if self.normalize_advantages == "batch":
            batch = standardize_advantages(batch)
        may_stop = not limitless(self.target_kl)

        def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
            distribution = policy(params, batch.obs)
            ratio = likelihood_ratio(distribution.log_prob(batch.action), batch.log_prob)
            surrogate = self.clipped_surrogate(ratio, batch.advantage)
            metrics = {
                "policy_loss": -jnp.mean(surrogate),
                "clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > self.clip_eps),
            }
            if may_stop:
                metrics["kl"] = jnp.mean(batch.distribution.kl(distribution))
            return metrics["policy_loss"] - self.entropy_coef * jnp.mean(distribution.entropy()), metrics

        params, state, metrics = optimizer.minimize(
            key,
            loss,
            params,
            state,
            batch,
            stop=(lambda metrics: metrics["kl"] > self.target_kl) if may_stop else None,
            prepare=standardize_advantages if self.normalize_advantages == "minibatch" else None,
            by_sample=True,
        )
        kl = mean_kl(policy, params, batch)
        return params, state, metrics | {"kl": kl}

    def clipped_surrogate(self, ratio: jax.Array, advantage: jax.Array) -> jax.Array:
        """The pessimistic bound for each sample, [N].

        Written as the ratio, kept from improving its sample further, times A: one operation, and one in its gradient.
        """
        # A ≥ 0: min(r, 1 + ε); A < 0: max(r, 1 - ε), at most dual_clip
        worse = advantage < 0
        low = jnp.where(worse, 1.0 - self.clip_eps, -jnp.inf)
        high = jnp.where(worse, self.dual_clip, 1.0 + self.clip_eps)
        return jax.lax.clamp(low, ratio, high) * advantage
