"""The cross-entropy method."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.types import Metrics, Params


class CEMState(struct.PyTreeNode):
    """What the method keeps between generations; the mean is the policy itself."""

    std: jax.Array  # [D] of the elites, without the extra noise
    generation: jax.Array  # [] int32


class CEM(Hyperparameters):
    """The cross-entropy method (Rubinstein, 1999) with decreasing noise (Szita and Lőrincz, 2006).

    Members are drawn from N(μ, σ²_g) with a diagonal covariance, σ²_g = σ² + ε² max(1 - g/G, 0) in generation g. The
    fraction ρ of the members with the highest fitness, two at least, gives the next μ and σ: its mean and population
    standard deviation.

    This is the variant of Duan et al. (2016, arXiv:1604.06778) and their rllab: noise is added to what members are
    drawn from, and falls linearly. rllab has ρ = 0.05, σ = ε = 1 and G = 100; our numbers suit networks of two layers.
    """

    elite_fraction: float = number(0.1, "(0, 1]", "ρ, the fraction of the members that the next generation comes from")
    initial_std: float = number(0.5, "(0, inf)", "σ of each parameter in the first generation")
    extra_std: float = number(0.25, "[0, inf)", "ε, noise beside σ that keeps the search from ending too early")
    extra_decay: float = number(30.0, "(0, inf)", "G, the generations in which the variance of ε falls to 0")
    envs_per_member: int = static(1, "environments in which each member acts", interval="[1, 1e6]")

    evolves: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any]] = {  # 100 members, as in rllab; the length of a rollout is ours
        "num_envs": 100,
        "num_steps": 500,
        "num_epochs": 1,
        "num_minibatches": 1,
    }

    def init(self, params: Params) -> CEMState:
        mean, _ = ravel_pytree(params)
        return CEMState(jnp.full_like(mean, self.initial_std), jnp.zeros((), jnp.int32))

    def ask(self, key: jax.Array, mean: jax.Array, state: CEMState, num_members: int) -> jax.Array:
        """Members [P, D] of N(μ, σ²_g)."""
        z = jax.random.normal(key, (num_members, mean.size))
        return mean[None] + self._spread(state)[None] * z

    def tell(
        self, mean: jax.Array, state: CEMState, members: jax.Array, fitness: jax.Array
    ) -> tuple[jax.Array, CEMState, Metrics]:
        """The next μ, σ and their generation, see `EvolutionStrategy.tell`."""
        rank = jnp.argsort(jnp.argsort(-fitness))
        num_elites = jnp.maximum(jnp.round(self.elite_fraction * fitness.size), 2)
        elite = (rank < num_elites)[:, None]
        centre = jnp.sum(jnp.where(elite, members, 0.0), axis=0) / num_elites
        variance = jnp.sum(jnp.where(elite, (members - centre[None]) ** 2, 0.0), axis=0) / num_elites
        metrics = {"search_std": jnp.sqrt(jnp.mean(self._spread(state) ** 2))}
        return centre, CEMState(jnp.sqrt(variance), state.generation + 1), metrics

    def _spread(self, state: CEMState) -> jax.Array:
        """[D] The standard deviation that members are drawn with."""
        left = jnp.maximum(1.0 - state.generation / self.extra_decay, 0.0)
        return jnp.sqrt(state.std**2 + self.extra_std**2 * left)
