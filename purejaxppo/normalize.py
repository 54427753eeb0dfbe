"""Running statistics of observations and returns."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from purejaxppo.parallel.mesh import moments, shards
from purejaxppo.recurrence import linear_recurrence
from purejaxppo.spaces import Box, ObservationSpace
from purejaxppo.types import Observation


class RunningStatistics(struct.PyTreeNode):
    """Mean and population variance of all samples seen so far."""

    count: jax.Array  # [O] float32
    mean: jax.Array  # [O]
    variance: jax.Array  # [O]

    @classmethod
    def init(cls, shape: tuple[int, ...]) -> "RunningStatistics":
        """Before any sample: mean 0, variance 1."""
        return cls(jnp.zeros(shape), jnp.zeros(shape), jnp.ones(shape))

    def update(self, samples: jax.Array) -> "RunningStatistics":
        """Merge samples [..., O] (Chan et al., 1979). What would make an entry non-finite leaves that entry alone."""
        axes = tuple(range(samples.ndim - self.mean.ndim))
        size = math.prod(samples.shape[: len(axes)]) * shards()
        total = self.count + size
        new_mean, new_variance = moments(samples, axes)
        delta = new_mean - self.mean
        mean = self.mean + delta * (size / total)
        within = self.variance * (self.count / total) + new_variance * (size / total)
        variance = within + delta**2 * (self.count / total) * (size / total)
        finite = jnp.isfinite(mean) & jnp.isfinite(variance)
        return RunningStatistics(
            count=jnp.where(finite, total, self.count),
            mean=jnp.where(finite, mean, self.mean),
            variance=jnp.where(finite, variance, self.variance),
        )

    def normalize(self, x: jax.Array) -> jax.Array:
        """(x - mean) / std, clipped to ±10."""
        shape = (1,) * (x.ndim - self.mean.ndim) + self.mean.shape
        centred = x - self.mean.reshape(shape)
        return jnp.clip(centred * jax.lax.rsqrt(self.variance.reshape(shape) + 1e-8), -10.0, 10.0)


def observation_statistics(space: ObservationSpace) -> Any:
    """Before any sample: `RunningStatistics` of each Box, as one or as a dict; integers and masks have none."""
    if isinstance(space, Mapping):
        return {name: RunningStatistics.init(entry.shape) for name, entry in space.items() if isinstance(entry, Box)}
    return RunningStatistics.init(space.shape) if isinstance(space, Box) else None


def update_statistics(statistics: Any, obs: Observation) -> Any:
    """Take in observations [..., O]."""
    if isinstance(statistics, Mapping):
        return {name: entry.update(obs[name]) for name, entry in statistics.items()}
    return statistics and statistics.update(obs)


def overflowed(before: Any, after: Any) -> jax.Array:
    """[] bool: an update left out an entry whose moments are not finite, as those of values near 1e20 are not."""
    old, new = (jax.tree.leaves(x, is_leaf=lambda x: isinstance(x, RunningStatistics)) for x in (before, after))
    largest = 2**24  # beyond it, float32 may count no further
    left_out = [jnp.any((a.count == b.count) & (a.count < largest)) for a, b in zip(old, new, strict=True)]
    return jnp.any(jnp.asarray(left_out, bool))


def normalize_observation(statistics: Any, obs: Observation) -> Observation:
    """Observations [..., O] standardised; what has no statistics stays."""
    if isinstance(statistics, Mapping):
        return {**obs, **{name: entry.normalize(obs[name]) for name, entry in statistics.items()}}
    return statistics.normalize(obs) if statistics else obs


class RewardNormalizer(struct.PyTreeNode):
    """Rewards divided by the running standard deviation of the discounted return (OpenAI Baselines, VecNormalize)."""

    discounted_return: jax.Array  # [B] R_t = r_t + γ R_{t-1}, begun anew at each episode
    statistics: RunningStatistics

    @classmethod
    def init(cls, num_envs: int) -> "RewardNormalizer":
        return cls(jnp.zeros(num_envs), RunningStatistics.init(()))

    def update(self, rewards: jax.Array, done: jax.Array, gamma: jax.Array | float) -> "RewardNormalizer":
        """Take in one rollout: rewards and done [T, B]."""
        fresh = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
        begun = rewards.at[0].add(gamma * self.discounted_return)
        returns = linear_recurrence(begun, gamma * (1.0 - fresh))
        goes_on = ~done[-1] & jnp.isfinite(returns[-1])
        return RewardNormalizer(jnp.where(goes_on, returns[-1], 0.0), self.statistics.update(returns))

    def normalize(self, rewards: jax.Array) -> jax.Array:
        """r / std, clipped to ±10."""
        return jnp.clip(rewards * jax.lax.rsqrt(self.statistics.variance + 1e-8), -10.0, 10.0)
