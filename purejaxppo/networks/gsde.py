"""Generalised state-dependent exploration (Raffin, Kober and Stulp, 2022, arXiv:2005.05719)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from purejaxppo.distributions import DiagonalGaussian

VARIANCE_FLOOR = 1e-6  # as in Stable-Baselines3


class StateDependentNoise(DiagonalGaussian):
    """Actions μ(s) + φ(s)ᵀ (σ ∘ Z), Z standard normal [L, k] and the same for many steps: exploration without jitter.

    φ are the policy's last features, σ = exp(weight_log_std). For each step by itself this is a Gaussian with variance
    Σ_l φ_l² σ_lk², which density, entropy, KL and Fisher matrix are those of: see `marginal`.
    """

    features: jax.Array  # [..., L]
    weight_log_std: jax.Array  # [L, k]
    hold: int = struct.field(pytree_node=False)  # steps with the same Z; 0: a whole rollout

    @classmethod
    def of(cls, mean: jax.Array, features: jax.Array, weight_log_std: jax.Array, hold: int) -> "StateDependentNoise":
        """From μ [..., k] and φ [..., L]. As in the paper, φ is not moved for the sake of the variance."""
        features = jax.lax.stop_gradient(features)
        variance = features**2 @ jnp.exp(2 * weight_log_std) + VARIANCE_FLOOR
        return cls(mean, 0.5 * jnp.log(variance), features, weight_log_std, hold)

    def held(self, keys: jax.Array) -> jax.Array:
        """The key of each of T steps [T]: that of the first one with the same Z."""
        return keys[_first(self.hold, jnp.arange(len(keys)))]

    def noise(self, key: jax.Array) -> jax.Array:
        """The key: Z of all steps would take too much memory."""
        return key

    def sample_with(self, noise: jax.Array) -> jax.Array:
        """Actions [..., k]."""
        weights = jnp.exp(self.weight_log_std)
        z = jax.random.normal(noise, (*self.features.shape, weights.shape[-1]), self.mean.dtype)
        return self.mean + jnp.einsum("...l,lk,...lk->...k", self.features, weights, z)


def noise_of_steps(distribution: Any, keys: jax.Array) -> Any:
    """What chance there is in T steps, one after the other, from their keys [T]."""
    if isinstance(distribution, StateDependentNoise):
        return distribution.held(keys)
    return jax.vmap(distribution.noise)(keys)


def step_of_noise(config: Any, step: Any) -> Any:
    """The step of an episode whose chance a sampled action has in `step`; gSDE's is held where it is measured, too."""
    return _first(config.noise_steps, step) if config.action_distribution == "gsde" else step


def _first(hold: int, step: Any) -> Any:
    """The first step that has the same Z as `step`."""
    return step // hold * hold if hold else step * 0


def marginal(distribution: Any) -> Any:
    """The distribution over a single step's action, whatever links it to other steps'."""
    if isinstance(distribution, StateDependentNoise):
        return DiagonalGaussian(distribution.mean, distribution.log_std)
    return distribution
